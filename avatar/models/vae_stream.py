"""The VAE decoder, some latent frames at a time, with every causal convolution's past handed in and out."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from torch import Tensor, nn

from avatar.models.vae_causal import CausalLayers, Pasts, channels_last, joined

# Of fewer channels cuDNN convolves pictures faster than videos: 96 channels of 4 frames of 704×384 on an H200
# in 1.0 ms, as a video in 1.9, by a kernel of an older generation of GPUs.
FEW_CHANNELS = 128


class CausalDecoder(CausalLayers):
    """diffusers' Wan decoder with its state made explicit, so that one compiled graph serves every block.

    diffusers walks frame by frame; passing several latent frames at once gives the same numbers.
    """

    def __init__(self, model: AutoencoderKLWan) -> None:
        super().__init__()
        self.post_quant_conv = model.post_quant_conv
        self.decoder = model.decoder

    def start(self, latents: Tensor) -> tuple[Tensor, Pasts]:
        """Decode the very first latent frame, B 16 1 h w, into one video frame: nothing precedes it."""
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
        x = decoder.nonlinearity(decoder.norm_out(x))
        return self._causal(decoder.conv_out, x, pasts, fresh), fresh

    def _convolve(self, conv: nn.Conv3d, x: Tensor) -> Tensor:
        """See CausalLayers."""
        if conv.in_channels < FEW_CHANNELS and conv.stride == (1, 1, 1) and conv.kernel_size[0] > 1:
            return convolve_pictures(conv, x)
        return super()._convolve(conv, x)

    def _upsample(self, layer: Any, x: Tensor, pasts: Pasts | None, fresh: Pasts) -> Tensor:
        """Twice the height and width, and after the first latent frame twice the frames (upsample3d)."""
        if layer.mode == "upsample3d":
            if pasts is None:  # the first latent frame stays one video frame and leaves no past here
                fresh.append(self._past(layer.time_conv, x, None))
            else:
                x = _interleave(self._causal(layer.time_conv, x, pasts, fresh))

        def twice(pictures: Tensor) -> Tensor:
            return layer.resample[1](F.interpolate(pictures, scale_factor=2.0, mode="nearest-exact"))

        return self._frame_by_frame(twice, x)


def convolve_pictures(conv: nn.Conv3d, x: Tensor) -> Tensor:
    """A convolution of a video, B C T H W, as one of pictures, whose channels are those of several frames."""
    batch, _, frames, height, width = x.shape
    size, *padded = conv.kernel_size
    count = frames - size + 1
    x = joined([x[:, :, first : first + count] for first in range(size)], "channels")
    x = x.permute(0, 2, 1, 3, 4).reshape(batch * count, -1, height, width)
    weight = conv.weight.movedim(1, -1).permute(0, 2, 3, 1, 4).flatten(3).movedim(-1, 1)
    y = F.conv2d(x, weight, conv.bias, padding=[side // 2 for side in padded])
    return y.reshape(batch, count, *y.shape[1:]).permute(0, 2, 1, 3, 4)


def _interleave(x: Tensor) -> Tensor:
    """B 2C T H W, the channel halves being even and odd frames, to B C 2T H W; C stays fastest in memory."""
    batch, channels, frames, height, width = x.shape
    x = x.permute(0, 2, 3, 4, 1).reshape(batch, frames, height, width, 2, channels // 2)
    x = x.permute(0, 1, 4, 2, 3, 5).reshape(batch, 2 * frames, height, width, channels // 2)
    return x.permute(0, 4, 1, 2, 3)
