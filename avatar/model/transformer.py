"""The streaming transformer: everything computed before, between and after its layers.

Attribute names match the checkpoint's tensor names. It knows nothing about steps, blocks or devices, which
pipeline.denoiser handles. Source: Alibaba-Quark/LiveAvatar liveavatar/models/wan/causal_model_s2v.py.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avatar.checkpoints.transformer_config import AUDIO_ENCODER, ModelConfig
from avatar.errors import BadInput
from avatar.geometry import BLOCK_LATENT_FRAMES, PATCH, Geometry
from avatar.model.audio_injection import AudioEncoder, AudioInjector, AudioTokens, Injection
from avatar.model.framepack import FramePacker, PatchEmbedding
from avatar.model.transformer_layer import TransformerLayer, modulate

NOISY, REFERENCE, MOTION = range(3)  # rows of trainable_cond_mask
TIME_BASE = 10_000.0


class TimeEmbedding(NamedTuple):
    """The embedding of a flow time. head: C; layers: 6 C; both float32."""

    head: Tensor
    layers: Tensor


class LayerParts(NamedTuple):
    """A layer and the audio injection that follows it, if any."""

    layer: TransformerLayer
    injection: Injection | None


class Head(nn.Module):
    """The output head: tokens to patches of velocity."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.eps = config.eps
        self.head = nn.Linear(config.dim, config.out_dim * PATCH[0] * PATCH[1] * PATCH[2])
        self.modulation = nn.Parameter(torch.empty(1, 2, config.dim))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """N C tokens and the time embedding, C, to N P patches, float32."""
        shift, scale = (self.modulation[0].float() + time).unbind()
        return linear_float32(modulate(x.float(), shift, scale, self.eps), self.head)


class StreamingTransformer(nn.Module):
    """Live Avatar's transformer. Build it on the meta device, load it strictly, then call fuse()."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.patch_embedding = PatchEmbedding(config.in_dim, dim)
        self.cond_encoder = PatchEmbedding(config.cond_dim, dim)
        self.frame_packer = FramePacker(config.in_dim, dim)
        self.trainable_cond_mask = nn.Embedding(3, dim)
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim)
        )
        self.time_embedding = nn.Sequential(nn.Linear(config.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.casual_audio_encoder = AudioEncoder(config)  # spelt as in the checkpoint
        self.blocks = nn.ModuleList(
            TransformerLayer(dim, config.ffn_dim, config.num_heads, config.eps)
            for _ in range(config.num_layers)
        )
        self.audio_injector = AudioInjector(config)
        self.head = Head(config)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the residual stream."""
        return self.patch_embedding.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.patch_embedding.weight.device

    def fuse(self) -> StreamingTransformer:
        """Join each self-attention's q, k and v into one linear layer; call once, after loading."""
        for index in range(self.config.num_layers):
            self.layer(index).self_attn.fuse()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()  # nothing allocated later fits the three freed pieces
        return self

    def layer(self, index: int) -> TransformerLayer:
        """A layer by its index."""
        block = self.blocks[index]
        assert isinstance(block, TransformerLayer)
        return block

    def layer_parts(self, index: int) -> LayerParts:
        """A layer with its injection."""
        return LayerParts(self.layer(index), self.audio_injector.after_layer(index))

    def embed_block(self, latents: Tensor, pose: Tensor | None) -> Tensor:
        """A block's noisy and pose latents, C F H W, to N C tokens; pose None still adds its bias."""
        pose_tokens = self.cond_encoder.bias if pose is None else self.cond_encoder(pose)
        return self.patch_embedding(latents) + pose_tokens + self.trainable_cond_mask.weight[NOISY]

    def embed_condition(self, reference: Tensor, motion: Tensor) -> Tensor:
        """The reference latent, C 1 H W, and the motion latents, C 19 H W, to N C tokens, reference first."""
        mask = self.trainable_cond_mask.weight
        return torch.cat(
            [self.patch_embedding(reference) + mask[REFERENCE], self.frame_packer(motion) + mask[MOTION]]
        )

    def embed_text(self, embeddings: Tensor) -> Tensor:
        """The prompt's token embeddings, L C, padded with zeros to text_len and passed through the MLP.

        Raises: BadInput for more than text_len tokens.
        """
        padding = self.config.text_len - len(embeddings)
        if padding < 0:
            raise BadInput(
                f"The prompt has {len(embeddings)} tokens, {-padding} too many.",
                f"Shorten it to {self.config.text_len} tokens.",
            )
        return self.text_embedding(F.pad(embeddings.to(self.dtype), (0, 0, 0, padding)))

    def embed_audio(self, features: Tensor) -> AudioTokens:
        """A block's speech features, S 25 C T, to its audio tokens; computed in float32, then rounded."""
        tokens = self.casual_audio_encoder(features)
        return AudioTokens(*(part.to(self.dtype) for part in tokens))

    def embed_time(self, timestep: float) -> TimeEmbedding:
        """Embed a flow time in 0..1000, in float32 whatever the weights' dtype."""
        first, _, second = self.time_embedding
        half = self.config.freq_dim // 2
        exponent = torch.arange(half, dtype=torch.float64, device=self.device) / half
        angles = timestep * TIME_BASE**-exponent
        x = torch.cat([angles.cos(), angles.sin()]).float()
        x = linear_float32(F.silu(linear_float32(x, first)), second)
        return TimeEmbedding(x, linear_float32(F.silu(x), self.time_projection[1]).unflatten(0, (6, -1)))

    def velocity(self, x: Tensor, time: Tensor, geometry: Geometry) -> Tensor:
        """The head: a block's tokens N C to its velocity C F H W, float32."""
        return unpatchify(self.head(x, time), geometry)


def held_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype to keep a tensor in, given the model's dtype.

    The audio encoder stays in float32: in bfloat16 it would be the model's least accurate part, and float32
    costs almost nothing there.
    """
    return torch.float32 if name.startswith(f"{AUDIO_ENCODER}.") else dtype


def unpatchify(patches: Tensor, geometry: Geometry) -> Tensor:
    """The head's output for a block's tokens, N P, to C F H W."""
    grid = (BLOCK_LATENT_FRAMES, geometry.rows, geometry.columns)
    return patches.reshape(*grid, *PATCH, -1).permute(6, 0, 3, 1, 4, 2, 5).reshape(geometry.block_shape)


def linear_float32(x: Tensor, linear: nn.Module, rows: int = 8192) -> Tensor:
    """A linear layer in float32; the weight is widened `rows` rows at a time, to keep peak memory low."""
    assert isinstance(linear, nn.Linear)
    parts = zip(linear.weight.split(rows), linear.bias.split(rows), strict=True)
    return torch.cat([F.linear(x, weight.float(), bias.float()) for weight, bias in parts], dim=-1)
