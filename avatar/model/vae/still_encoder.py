"""The VAE encoder for a still picture: outputs that can no longer change are not recomputed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    AutoencoderKLWan,
    WanCausalConv3d,
    WanResample,
    WanResidualBlock,
)
from torch import Tensor, nn

from avatar.geometry import VAE_TIME_STRIDE
from avatar.model.vae.causal import CausalLayers, Pasts, channels_last


@dataclass
class StillLayer:
    """One layer's state while the chunks of a still video pass through it; counts are in its output frames.

    settles: the first frame from which all are identical. chunk: frames per chunk, except the first, which
    has one.
    """

    layer: nn.Module
    settles: int
    chunk: int
    pasts: Pasts | None = None


class StillEncoder(CausalLayers):
    """diffusers' Wan encoder, chunk by chunk as in diffusers, for a video whose frames are all identical.

    Every layer looks back a bounded number of frames, so its output stops changing after that many. From then
    on its last frame is the still picture for the layers after it, and the layers up to it no longer run.
    """

    def __init__(self, model: AutoencoderKLWan) -> None:
        super().__init__()
        self.encoder = model.encoder
        self.quant_conv = model.quant_conv

    def forward(self, picture: Tensor, num_frames: int) -> Tensor:
        """Encode a picture, B 3 1 H W, repeated for 1 + 4n frames, into moments, B 32 1+n h w."""
        stills, frames, latents = self.stills(), VAE_TIME_STRIDE, []
        for index in range(1 + (num_frames - 1) // VAE_TIME_STRIDE):
            x = channels_last(picture.expand(-1, -1, frames if index else 1, -1, -1))
            for still in stills:
                x = self._take(still, x)
                if _settled(still, index):
                    picture, frames = x[:, :, -1:].clone(memory_format=torch.channels_last_3d), still.chunk
            stills = [still for still in stills if not _settled(still, index)]
            latents.append(x)
        return self.quant_conv(torch.cat(latents, dim=2))

    def stills(self) -> list[StillLayer]:
        """The layers in order, with the frame at which each settles, derived from its convolutions' reach."""
        encoder: Any = self.encoder
        first, *rest = encoder.mid_block.resnets
        layers = [encoder.conv_in, *encoder.down_blocks, first]
        for attention, resnet in zip(encoder.mid_block.attentions, rest, strict=True):
            layers += [attention, resnet]
        layers += [encoder.norm_out, encoder.nonlinearity, encoder.conv_out]
        stills, settles, chunk = [], 0, VAE_TIME_STRIDE
        for layer in layers:
            for conv in layer.modules():
                if isinstance(conv, WanCausalConv3d):
                    reach, stride = conv.kernel_size[0] - 1, conv.stride[0]
                    settles = -(-(settles + reach) // stride)  # frame j reads from j * stride - reach on
                    chunk //= stride
            stills.append(StillLayer(layer, settles, chunk))
        return stills

    def _take(self, still: StillLayer, x: Tensor) -> Tensor:
        """Pass the next frames through one layer and replace its pasts."""
        layer, fresh = still.layer, Pasts()
        if isinstance(layer, WanResidualBlock):
            x = self._residual(layer, x, still.pasts, fresh)
        elif isinstance(layer, WanResample):
            x = self._downsample(layer, x, still.pasts, fresh)
        elif isinstance(layer, WanCausalConv3d):
            x = self._causal(layer, x, still.pasts, fresh)
        else:  # attention, norm and nonlinearity see each frame alone
            x = layer(x)
        still.pasts = fresh
        return x

    def _downsample(self, layer: Any, x: Tensor, pasts: Pasts | None, fresh: Pasts) -> Tensor:
        """Half the height and width, and after the first frame half the frames (downsample3d)."""
        x = self._frame_by_frame(layer.resample, x)
        if layer.mode == "downsample3d":
            if pasts is None:  # the first frame is passed through, and is the next call's past
                fresh.append(x)
            else:
                x = self._causal(layer.time_conv, x, pasts, fresh)
        return x


def _settled(still: StillLayer, index: int) -> bool:
    """Whether the last frame of a layer's output in chunk `index` equals all later ones."""
    return index * still.chunk >= still.settles
