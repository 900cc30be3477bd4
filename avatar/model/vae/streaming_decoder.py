"""The VAE decoder, a few latent frames at a time, with each causal convolution's past as explicit state."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from torch import Tensor, nn

from avatar.model.vae.causal import CausalLayers, Pasts, channels_last, joined

if find_spec("triton") is not None:  # where PyTorch compiles for GPUs
    from avatar.model.kernels.vae_norm import laid_out

# With fewer channels, cuDNN is faster in 2D than in 3D: on an H200, 96 channels of 4 frames of 704×384 take
# 1.0 ms in 2D, 1.9 ms in 3D, where cuDNN picks a kernel for an older GPU generation.
FEW_CHANNELS = 128


class CausalDecoder(CausalLayers):
    """diffusers' Wan decoder with its state made explicit, so that one compiled graph serves every block.

    diffusers decodes frame by frame; decoding several latent frames at once gives the same numbers.
    """

    def __init__(self, model: AutoencoderKLWan) -> None:
        super().__init__()
        self.post_quant_conv = model.post_quant_conv
        self.decoder = model.decoder

    def start(self, latents: Tensor) -> tuple[Tensor, Pasts]:
        """Decode the first latent frame, B 16 1 h w, which has no past, into one video frame."""
        return self._run(latents, None)

    def forward(self, latents: Tensor, pasts: Pasts) -> tuple[Tensor, Pasts]:
        """Decode the next latent frames, B 16 t h w, into B 3 4t H W, about -1..1, and the new pasts."""
        return self._run(latents, list(pasts))

    def _run(self, latents: Tensor, pasts: Pasts | None) -> tuple[Tensor, Pasts]:
        decoder: Any = self.decoder
        fresh: Pasts = []
        x = self.post_quant_conv(channels_last(latents))
        x = self._causal(decoder.conv_in, x, pasts, fresh)
        x = self._residual(decoder.mid_block.resnets[0], x, pasts, fresh)
        for attention, resnet in zip(
            decoder.mid_block.attentions, decoder.mid_block.resnets[1:], strict=True
        ):
            x = self._residual(resnet, attention(x), pasts, fresh)
        for block in decoder.up_blocks:
            for resnet in block.resnets:
                x = self._residual(resnet, x, pasts, fresh)
            for upsampler in block.upsamplers or ():
                x = self._upsample(upsampler, x, pasts, fresh)
        return self._head(x, pasts, fresh), fresh

    def _residual(self, block: Any, x: Tensor, pasts: Pasts | None, fresh: Pasts) -> Tensor:
        """See CausalLayers."""
        if not _in_one_pass(x):
            return super()._residual(block, x, pasts, fresh)
        skip = block.conv_shortcut(x)
        x = self._activated(block.norm1, block.conv1, x, None, pasts, fresh)
        x = self._activated(block.norm2, block.conv2, x, block.conv1.bias, pasts, fresh)
        return x + _by_channel(block.conv2.bias) + skip

    def _head(self, x: Tensor, pasts: Pasts | None, fresh: Pasts) -> Tensor:
        decoder: Any = self.decoder
        if not _in_one_pass(x):
            return self._causal(decoder.conv_out, decoder.nonlinearity(decoder.norm_out(x)), pasts, fresh)
        x = self._activated(decoder.norm_out, decoder.conv_out, x, None, pasts, fresh)
        return x + _by_channel(decoder.conv_out.bias)

    def _activated(
        self,
        norm: Any,
        conv: nn.Conv3d,
        x: Tensor,
        bias: Tensor | None,
        pasts: Pasts | None,
        fresh: Pasts,
    ) -> Tensor:
        """Add x's pending bias, if any, then norm, SiLU and convolution without its own bias."""
        stacked = _as_pictures(conv)
        x, past = laid_out(x, self._past(conv, x, pasts), norm.gamma, bias, stacked=stacked)
        fresh.append(past)
        return convolve_stacked(conv, x, None) if stacked else super()._convolve(conv, x, None)

    def _convolve(self, conv: nn.Conv3d, x: Tensor, bias: Tensor | None) -> Tensor:
        """See CausalLayers."""
        if _as_pictures(conv):
            return convolve_stacked(conv, stack(x, conv.kernel_size[0]), bias)
        return super()._convolve(conv, x, bias)

    def _upsample(self, layer: Any, x: Tensor, pasts: Pasts | None, fresh: Pasts) -> Tensor:
        """Twice the height and width, and after the first latent frame twice the frames (upsample3d)."""
        if layer.mode == "upsample3d":
            if pasts is None:  # the first latent frame stays one video frame; the past here is zeros
                fresh.append(self._past(layer.time_conv, x, None))
            else:
                x = _interleave(self._causal(layer.time_conv, x, pasts, fresh))

        def twice(pictures: Tensor) -> Tensor:
            return layer.resample[1](F.interpolate(pictures, scale_factor=2.0, mode="nearest-exact"))

        return self._frame_by_frame(twice, x)


def stack(x: Tensor, size: int) -> Tensor:
    """Stack each frame with those before it along channels, B C T H W to B size*C T' H W."""
    count = x.shape[2] - size + 1
    return joined([x[:, :, first : first + count] for first in range(size)], "channels")


def convolve_stacked(conv: nn.Conv3d, x: Tensor, bias: Tensor | None) -> Tensor:
    """A 3D convolution computed as a 2D one over the frames stacked by stack()."""
    batch, _, count, *area = x.shape
    x = x.permute(0, 2, 1, 3, 4).reshape(batch * count, -1, *area)
    weight = conv.weight.movedim(1, -1).permute(0, 2, 3, 1, 4).flatten(3).movedim(-1, 1)
    y = F.conv2d(x, weight, bias, padding=[side // 2 for side in conv.kernel_size[1:]])
    return y.reshape(batch, count, *y.shape[1:]).permute(0, 2, 1, 3, 4)


def _as_pictures(conv: nn.Conv3d) -> bool:
    return conv.in_channels < FEW_CHANNELS and conv.kernel_size[0] > 1 and conv.stride == (1, 1, 1)


def _in_one_pass(x: Tensor) -> bool:
    """Whether the fused kernel is used: on a GPU, inside a compiled graph, where Triton is available."""
    return x.is_cuda and torch.compiler.is_compiling()


def _by_channel(bias: Tensor) -> Tensor:
    return bias.view(-1, 1, 1, 1)


def _interleave(x: Tensor) -> Tensor:
    """B 2C T H W, whose channel halves are even and odd frames, to B C 2T H W; C stays contiguous."""
    batch, channels, frames, height, width = x.shape
    x = x.permute(0, 2, 3, 4, 1).reshape(batch, frames, height, width, 2, channels // 2)
    x = x.permute(0, 1, 4, 2, 3, 5).reshape(batch, 2 * frames, height, width, channels // 2)
    return x.permute(0, 4, 1, 2, 3)
