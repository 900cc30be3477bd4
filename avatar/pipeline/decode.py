"""Decode latent blocks to video frames as a stream; no frame is decoded twice, however long the video."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from avatar.geometry import LEAD_IN_FRAMES
from avatar.model.vae.causal import Pasts

PRIMING_LATENT_FRAMES = 7  # motion latents decoded before block 0; their frames are dropped


class CausalNetwork(Protocol):
    """Latents, 1 16 t h w, to pixels in -1..1, 1 3 T H W, with the past as explicit state."""

    def start(self, latents: Tensor) -> tuple[Tensor, Pasts]:
        """Decode the first latent frame, into one video frame."""
        ...

    def __call__(self, latents: Tensor, pasts: Pasts) -> tuple[Tensor, Pasts]:
        """Decode the next latent frames, into T = 4t."""
        ...


class LatentDecoder(Protocol):
    """What decodes: the VAE itself, or the tiny decoder.

    latent_frames_at_once: the most that pass through it in one call, after the first.
    """

    latent_frames_at_once: int
    device: torch.device

    @property
    def decoder(self) -> CausalNetwork: ...

    @property
    def compiled_decoder(self) -> Callable[[Tensor, Pasts], tuple[Tensor, Pasts]]: ...

    def decoder_input(self, latents: Tensor) -> Tensor:
        """Normalised latents as the decoder takes them, on its device."""
        ...


class StreamingDecoder:
    """Decodes blocks in order; knows nothing about rollouts, segments or files.

    compile: use one graph per picture size, built at first use.
    """

    def __init__(self, source: LatentDecoder, compile: bool = False) -> None:
        self._source = source
        self._decoder = source.decoder
        self._step = source.compiled_decoder if compile else source.decoder
        self._pasts: Pasts | None = None
        self._drop = 0

    @torch.no_grad()
    def prime(self, motion_latents: Tensor) -> None:
        """Start a video: fill the causal past from the first 7 motion latents, 16 t h w."""
        self.go_on(motion_latents[:, :PRIMING_LATENT_FRAMES])
        self._drop = LEAD_IN_FRAMES

    @torch.no_grad()
    def go_on(self, motion_latents: Tensor) -> None:
        """Continue a video from its last frames, as 16 t h w motion latents; no new frame is dropped."""
        self._pasts = None
        self._video(motion_latents[:, :1])
        for part in motion_latents[:, 1:].split(self._source.latent_frames_at_once, dim=1):
            self._video(part)
        self._drop = 0

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode the next block, 16 t h w normalised latents, to uint8 T H W 3 on the decoder's device.

        T = 4t, or 4t - 3 for the first block after prime(), whose first frames are the lead-in.
        """
        latents = latents.to(self._source.device)  # in one go, or the host would wait for each part in turn
        parts = latents.split(self._source.latent_frames_at_once, dim=1)
        frames = torch.cat([eight_bit(self._video(part)[0]) for part in parts])[self._drop :]
        self._drop = 0
        return frames

    def _video(self, latents: Tensor) -> Tensor:
        """16 t h w to 1 3 T H W, not clamped; the first latent frame must come alone and gives one frame."""
        latents = self._source.decoder_input(latents[None])
        if self._pasts is None:
            video, self._pasts = self._decoder.start(latents)
        else:
            video, self._pasts = self._step(latents, self._pasts)
        return video


def eight_bit(video: Tensor) -> Tensor:
    """Pixels in -1..1, 3 T H W, clamped, to uint8 T H W 3."""
    levels = video.float().clamp(-1.0, 1.0).add(1.0).mul(127.5).round()
    return levels.to(torch.uint8).permute(1, 2, 3, 0).contiguous()
