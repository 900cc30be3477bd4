"""The VAE decoder, some latent frames at a time, with every causal convolution's past handed in and out."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from torch import Tensor, nn

TIME_REACH = 2  # frames of the past that a convolution of three frames reads

Pasts = list[Tensor]  # one tensor B C 2 H W for each causal convolution, in the order in which they run


class CausalDecoder(nn.Module):
    """diffusers' Wan decoder with its state made explicit, so that one compiled graph serves every block.

    diffusers keeps the past inside the model and walks frame by frame; passing several latent frames at once
    gives the same numbers, and zeros for a missing past are the causal padding itself.
    """

    def __init__(
        self, model: AutoencoderKLWan, layout: torch.memory_format = torch.contiguous_format
    ) -> None:
        super().__init__()
        self.post_quant_conv = model.post_quant_conv
        self.decoder = model.decoder
        self.layout = layout

    def start(self, latents: Tensor) -> tuple[Tensor, Pasts]:
        """Decode the very first latent frame, B 16 1 h w, into one video frame: nothing precedes it."""
        return self._run(latents, None)

    def forward(self, latents: Tensor, pasts: Pasts) -> tuple[Tensor, Pasts]:
        """Decode the next latent frames, B 16 t h w, into B 3 4t H W, about -1..1, and the new pasts."""
        return self._run(latents, pasts)

    def _run(self, latents: Tensor, pasts: Pasts | None) -> tuple[Tensor, Pasts]:
        decoder: Any = self.decoder
        fresh: Pasts = []
        x = self.post_quant_conv(latents.contiguous(memory_format=self.layout))
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
        x = decoder.nonlinearity(decoder.norm_out(x))
        return self._causal(decoder.conv_out, x, pasts, fresh), fresh

    def _causal(self, conv: nn.Conv3d, x: Tensor, pasts: Pasts | None, fresh: Pasts) -> Tensor:
        """A convolution over its past and x; appends the past of the next call."""
        x = torch.cat([self._past(x, pasts, fresh), x], dim=2)
        fresh.append(x[:, :, -TIME_REACH:].clone(memory_format=self.layout))
        _, height, width = conv.kernel_size
        return F.conv3d(x, conv.weight, conv.bias, padding=(0, height // 2, width // 2))

    def _past(self, x: Tensor, pasts: Pasts | None, fresh: Pasts) -> Tensor:
        if pasts is not None:
            return pasts[len(fresh)]
        batch, channels, _, height, width = x.shape
        return x.new_zeros(batch, channels, TIME_REACH, height, width).contiguous(memory_format=self.layout)

    def _residual(self, block: Any, x: Tensor, pasts: Pasts | None, fresh: Pasts) -> Tensor:
        skip = block.conv_shortcut(x)
        x = self._causal(block.conv1, block.nonlinearity(block.norm1(x)), pasts, fresh)
        x = self._causal(block.conv2, block.nonlinearity(block.norm2(x)), pasts, fresh)
        return x + skip

    def _upsample(self, layer: Any, x: Tensor, pasts: Pasts | None, fresh: Pasts) -> Tensor:
        """Twice the height and width, and after the first latent frame twice the frames (upsample3d)."""
        if layer.mode == "upsample3d":
            if pasts is None:  # the first latent frame stays one video frame and leaves no past here
                fresh.append(self._past(x, None, fresh))
            else:
                x = _interleave(self._causal(layer.time_conv, x, pasts, fresh))
        batch, _, frames, height, width = x.shape
        x = x.permute(0, 2, 1, 3, 4).reshape(batch * frames, -1, height, width)
        x = layer.resample[1](F.interpolate(x, scale_factor=2.0, mode="nearest-exact"))
        x = x.reshape(batch, frames, -1, 2 * height, 2 * width).permute(0, 2, 1, 3, 4)
        return x.contiguous(memory_format=self.layout)


def _interleave(x: Tensor) -> Tensor:
    """B 2C T H W, the channel halves being even and odd frames, to B C 2T H W; C stays fastest in memory."""
    batch, channels, frames, height, width = x.shape
    x = x.permute(0, 2, 3, 4, 1).reshape(batch, frames, height, width, 2, channels // 2)
    x = x.permute(0, 1, 4, 2, 3, 5).reshape(batch, 2 * frames, height, width, channels // 2)
    return x.permute(0, 4, 1, 2, 3)
