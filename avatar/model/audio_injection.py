"""The audio path: speech features to audio tokens, and their injection into the residual stream.

Source: Wan-Video/Wan2.2 wan/modules/s2v/audio_utils.py and auxi_blocks.py, and diffusers' AdaLayerNorm.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avatar.checkpoints.transformer_config import ModelConfig
from avatar.geometry import BLOCK_LATENT_FRAMES, VAE_TIME_STRIDE
from avatar.model.attention import attention_weights
from avatar.model.transformer_layer import Attention, modulate

NUM_HIDDEN_STATES = 25  # of wav2vec2-large: the embeddings and its 24 layers
ADALN_EPS = 1e-5  # for the injection's norm only; all other norms use the config's eps

# Frames left of a block that its first token depends on. Each convolution looks two steps back, at steps of
# one, one and two frames: 8 frames in all. The first token is at the fourth frame.
SEEN_FRAMES = 8 - (VAE_TIME_STRIDE - 1)


class AudioTokens(NamedTuple):
    """The audio tokens of a block with S speakers and F latent frames.

    local: S F A C, attended to. overall: S F C, drives AdaLN.
    """

    local: Tensor
    overall: Tensor


class CausalConv(nn.Module):
    """A causal convolution over time, padded on the left with copies of the first frame."""

    def __init__(self, in_dim: int, out_dim: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(in_dim, out_dim, kernel_size=3, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """B C T to B C' T'. A matrix product: for so few frames cuDNN would first re-lay out all weights."""
        (size,), (stride,) = self.conv.kernel_size, self.conv.stride
        windows = F.pad(x, (size - 1, 0), mode="replicate").unfold(2, size, stride)
        windows = windows.transpose(1, 2).flatten(2)  # B T' C·size
        return F.linear(windows, self.conv.weight.flatten(1), self.conv.bias).transpose(1, 2)


class AudioConvolutions(nn.Module):
    """Local and overall tokens at a quarter of the frame rate."""

    def __init__(self, in_dim: int, dim: int, num_tokens: int, eps: float) -> None:
        super().__init__()
        self.num_tokens, self.eps = num_tokens, eps
        self.conv1_local = CausalConv(in_dim, dim // 4 * num_tokens)
        self.conv1_global = CausalConv(in_dim, dim // 4)
        self.conv2 = CausalConv(dim // 4, dim // 2, stride=2)
        self.conv3 = CausalConv(dim // 2, dim, stride=2)
        self.final_linear = nn.Linear(dim, dim)
        self.padding_tokens = nn.Parameter(torch.empty(1, 1, 1, dim))

    def forward(self, x: Tensor) -> AudioTokens:
        """S C T features to tokens of T / 4 latent frames, rounded up."""
        local = self._shrink(self.conv1_local(x).unflatten(1, (self.num_tokens, -1)).flatten(0, 1))
        local = local.unflatten(0, (-1, self.num_tokens)).transpose(1, 2)
        padding = self.padding_tokens.expand(*local.shape[:2], 1, -1)
        return AudioTokens(
            torch.cat([local, padding], dim=2), self.final_linear(self._shrink(self.conv1_global(x)))
        )

    def _shrink(self, x: Tensor) -> Tensor:
        """B C/4 T to B T/4 C."""
        for conv in (self.conv2, self.conv3):
            x = conv(self._norm(x).transpose(1, 2))
        return self._norm(x)

    def _norm(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        return F.silu(F.layer_norm(x, x.shape[-1:], eps=self.eps))


class AudioEncoder(nn.Module):
    """A learned mixture of the speech model's hidden states, then causal convolutions; all in float32."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.empty(1, NUM_HIDDEN_STATES, 1, 1))
        self.encoder = AudioConvolutions(config.audio_dim, config.dim, config.num_audio_token, config.eps)

    def forward(self, features: Tensor) -> AudioTokens:
        """S 25 C T features of a block's video frames to the tokens of its latent frames, float32.

        In training, the first frame was repeated on the left once per motion frame. No token that is kept
        depends on more than SEEN_FRAMES of these copies, so only that many are made.
        """
        pad = features[..., :1].expand(*features.shape[:-1], SEEN_FRAMES)
        mixture = F.silu(self.weights)
        features = torch.cat([pad, features], dim=-1).float()
        mixed = (features * (mixture / mixture.sum(dim=1, keepdim=True))).sum(dim=1)
        return AudioTokens(*(part[:, -BLOCK_LATENT_FRAMES:] for part in self.encoder(mixed)))


class InjectionContext(NamedTuple):
    """One injection's precomputed inputs for a block of S speakers and F latent frames of A tokens each.

    keys: SF A h d. outputs: SF A·h C, each token's value per head, already output-projected.
    shift, scale: for AdaLN, SF 1 C.
    """

    keys: Tensor
    outputs: Tensor
    shift: Tensor
    scale: Tensor


class AdaLN(nn.Module):
    """The linear layer that turns the overall audio token into a shift and a scale."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, 2 * dim)


class Injection(nn.Module):
    """Audio cross-attention per latent frame, with AdaLN on the queries; one entry of both lists."""

    def __init__(self, attention: Attention, adaln: AdaLN) -> None:
        super().__init__()
        self.attention = attention
        self.adaln = adaln

    def context(self, tokens: AudioTokens) -> InjectionContext:
        """Precompute a block's InjectionContext, used at each of its denoising steps.

        There are few tokens, so the output projection is applied to their values here, head by head; each
        query then needs only a weighted sum.
        """
        vectors = self.adaln.linear(F.silu(tokens.overall.flatten(0, 1)))
        shift, scale = vectors[:, None].chunk(2, dim=-1)
        keys, values = self.attention.keys_values(tokens.local.flatten(0, 1))
        outputs = self.attention.outputs_by_head(values).flatten(1, 2)
        return InjectionContext(keys, outputs, shift, scale)

    def add(self, x: Tensor, context: InjectionContext, masks: Tensor | None) -> Tensor:
        """Add the audio to the residual, N C: the sum of one result per speaker, each times its mask.

        masks: S N 1, or None for a single speaker.
        """
        if masks is None:
            return x + self._heard(x, context)
        total: Tensor | None = None
        for number, mask in enumerate(masks):  # one after another, so that memory does not grow with them
            rows = slice(number * BLOCK_LATENT_FRAMES, (number + 1) * BLOCK_LATENT_FRAMES)
            out = self._heard(x, InjectionContext(*(part[rows] for part in context))) * mask
            total = out if total is None else total + out
        assert total is not None
        return x + total

    def _heard(self, x: Tensor, context: InjectionContext) -> Tensor:
        """What one speaker adds to the residual, N C."""
        frames = x.unflatten(0, (BLOCK_LATENT_FRAMES, -1))
        query = self.attention.query(modulate(frames, context.shift, context.scale, ADALN_EPS))
        weights = attention_weights(query, context.keys).flatten(-2)
        return (weights @ context.outputs + self.attention.o.bias).reshape(x.shape)


class AudioInjector(nn.Module):
    """All injections, stored in the checkpoint's two lists."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        layers = config.audio_inject_layers
        self.index_of = {layer: index for index, layer in enumerate(layers)}
        self.injector = nn.ModuleList(Attention(config.dim, config.num_heads, config.eps) for _ in layers)
        self.injector_adain_layers = nn.ModuleList(AdaLN(config.dim) for _ in layers)

    def after_layer(self, layer: int) -> Injection | None:
        """The injection after a layer, or None."""
        index = self.index_of.get(layer)
        if index is None:
            return None
        attention, adaln = self.injector[index], self.injector_adain_layers[index]
        assert isinstance(attention, Attention)
        assert isinstance(adaln, AdaLN)
        return Injection(attention, adaln)
