"""The tiny decoder: a small network trained to give what the VAE's decoder gives, much sooner.

Source: github.com/madebyollin/taehv taehv.py (layers, tensor names, frames dropped at the start; MIT);
github.com/ModelTC/LightX2V lightx2v/models/video_encoders/hf/{tae,wan/vae_tiny}.py and lightx2v/pipeline.py
(that LightTAE takes the VAE's own latents; Apache-2.0).
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avatar.geometry import BLOCK_LATENT_FRAMES, LATENT_CHANNELS, VAE_TIME_STRIDE
from avatar.model.vae.causal import Pasts
from avatar.model.vae.vae import VideoVAE
from avatar.model.weights.tensor_files import Shapes, read_pth, require_match
from avatar.model.weights.weight_formats import StoredTensors

WIDTH = 256  # channels of the published models
NARROWER = (1, 2, 4, 4)  # times, at an eighth, a quarter, half and the whole of the picture's size
GROWTH = (1, 2, 2)  # frames made of one, before each doubling of height and width
MEMORY_BLOCKS = 3  # at each of the three smaller sizes
LATENT_LIMIT = 3.0  # latents are squeezed smoothly into -3..3
FRAMES_AT_FULL_SIZE = 4  # at once; more take memory and are no faster
PREFIX = "decoder."  # of the decoder's tensors in a published file; the others are an encoder's
LIGHT = "lighttae"  # how the names of LightTAE's files begin; nothing in them tells them from TAEHV's


class MemoryBlock(nn.Module):
    """A residual block of three convolutions that sees each frame beside the one before it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            _conv(2 * channels, channels),
            nn.ReLU(inplace=True),
            _conv(channels, channels),
            nn.ReLU(inplace=True),
            _conv(channels, channels),
        )

    def forward(self, x: Tensor, past: Tensor | None) -> Tensor:
        """Frames x, T C H W, after the frame `past`, 1 C H W; None for zeros."""
        frames, channels, height, width = x.shape
        size = (frames, 2 * channels, height, width)
        beside = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        beside[:, :channels] = x
        beside[1:, channels:] = x[:-1]
        beside[0, channels:] = 0 if past is None else past[0]
        return F.relu_(self.conv(beside).add_(x))


class FrameGrowth(nn.Module):
    """Each frame becomes one or several, by a convolution of 1 × 1."""

    def __init__(self, channels: int, times: int) -> None:
        super().__init__()
        self.times = times
        self.conv = nn.Conv2d(channels, times * channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """T C H W to times * T frames; channels stay contiguous in memory."""
        x = self.conv(x).permute(0, 2, 3, 1).unflatten(-1, (self.times, -1))
        return x.permute(0, 3, 1, 2, 4).flatten(0, 1).permute(0, 3, 1, 2)


class TinyCausalDecoder(nn.Module):
    """The decoder's layers, named and numbered as in the published file.

    All frames of a call go through each layer at once. What a call leaves for the next is the last frame at
    each memory block. Growing comes before enlarging here, which gives the same numbers sooner.
    """

    def __init__(self, width: int = WIDTH) -> None:
        """width: channels at the smallest size, a multiple of 4."""
        super().__init__()
        widths = [width // times for times in NARROWER]
        layers: list[nn.Module] = [nn.Identity(), _conv(LATENT_CHANNELS, width), nn.Identity()]
        for times, (channels, narrower) in zip(GROWTH, pairwise(widths), strict=True):
            layers += [MemoryBlock(channels) for _ in range(MEMORY_BLOCKS)]
            layers += [nn.Identity(), FrameGrowth(channels, times), _conv(channels, narrower, bias=False)]
        self.decoder = nn.Sequential(*layers, nn.Identity(), _conv(widths[-1], 3))

    def start(self, latents: Tensor) -> tuple[Tensor, Pasts]:
        """Decode the first latent frame, 1 16 1 h w, into one video frame, the last of the four it makes."""
        video, pasts = self._run(latents, None)
        return video[:, :, VAE_TIME_STRIDE - 1 :], pasts

    def forward(self, latents: Tensor, pasts: Pasts) -> tuple[Tensor, Pasts]:
        """Decode the next latent frames, 1 16 t h w, into 1 3 4t H W, about -1..1, and the new pasts."""
        return self._run(latents, list(pasts))

    def _run(self, latents: Tensor, pasts: Pasts | None) -> tuple[Tensor, Pasts]:
        (x,) = latents.transpose(1, 2)  # frames as a batch of pictures, t 16 h w
        x = torch.tanh(x / LATENT_LIMIT) * LATENT_LIMIT
        x = F.relu_(self.decoder[1](x.contiguous(memory_format=torch.channels_last)))
        fresh: Pasts = []
        for layer in list(self.decoder)[3:-3]:
            match layer:
                case MemoryBlock():
                    past = None if pasts is None else pasts.pop(0)
                    fresh.append(x[-1:].clone())
                    x = layer(x, past)
                case FrameGrowth():
                    x = layer(x)
                case nn.Conv2d():
                    x = layer(_enlarged(x))
        pictures = torch.cat([self._head(part) for part in x.split(FRAMES_AT_FULL_SIZE)])
        return pictures.transpose(0, 1)[None].mul(2).sub(1), fresh

    def _head(self, x: Tensor) -> Tensor:
        """From half the picture's size, T 64 H/2 W/2, to pixels in about 0..1, T 3 H W."""
        picture: Tensor = self.decoder[-1](F.relu_(self.decoder[-3](_enlarged(x))))
        return picture


class TinyDecoder:
    """The tiny decoder as StreamingDecoder takes it, in the place of a VideoVAE.

    In half precision on a GPU, as TAEHV's file is, and in float32 elsewhere. It is not compiled: building
    graphs would take longer than they save.
    """

    latent_frames_at_once = BLOCK_LATENT_FRAMES

    def __init__(self, model: TinyCausalDecoder, vae: VideoVAE, *, normalised: bool = True) -> None:
        """vae: the one whose latents it decodes, on the device where it shall run.

        normalised: whether it was trained on normalised latents, as TAEHV was, or on the VAE's own.
        """
        self.device = vae.device
        self.dtype = torch.float16 if self.device.type == "cuda" else torch.float32
        self.decoder = self.compiled_decoder = model.to(self.device, self.dtype).eval().requires_grad_(False)
        for weight in model.parameters():
            if weight.ndim == 4:  # as kernels on GPUs prefer
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        self._scale = None if normalised else (vae.mean, vae.std)

    @classmethod
    def load(cls, path: Path, vae: VideoVAE) -> TinyDecoder:
        """Read TAEHV's or LightTAE's file for Wan 2.1, .pth or .safetensors. Raises: WeightsMissing."""
        stored = read_pth(path) if path.suffix == ".pth" else dict(StoredTensors(path))
        tensors = {name: value for name, value in stored.items() if name.startswith(PREFIX)}
        first = tensors.get(f"{PREFIX}1.weight")
        with torch.device("meta"):
            model = TinyCausalDecoder(WIDTH if first is None else len(first))
        expected: Shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        require_match(path.name, expected, {name: tuple(value.shape) for name, value in tensors.items()})
        model.load_state_dict({name: value.float() for name, value in tensors.items()}, assign=True)
        return cls(model, vae, normalised=not path.name.startswith(LIGHT))

    def beside(self, vae: VideoVAE) -> TinyDecoder:
        """The same decoder on the device of a VAE that was moved; its weights move with it."""
        return TinyDecoder(self.decoder, vae, normalised=self._scale is None)

    def decoder_input(self, latents: Tensor) -> Tensor:
        """Normalised latents, B 16 t h w, as the decoder takes them, on its device and in its dtype."""
        latents = latents.to(self.device, torch.float32)
        if self._scale is not None:
            mean, std = self._scale
            latents = latents * std + mean
        return latents.to(self.dtype)


def _conv(channels: int, out: int, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, padding=1, bias=bias)


def _enlarged(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")
