"""Turn a ResumeState into model inputs: motion frames and the anchor, encoded at the model's size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from avatar.geometry import MOTION_FRAMES, VAE_SPACE_STRIDE, VAE_TIME_STRIDE, Size
from avatar.model.vae.vae import VideoVAE
from avatar.pipeline.denoiser import Conditions
from avatar.pipeline.frame_size import LEVELS, resized, still
from avatar.runtime.resume_state import ResumeState

ANCHOR = slice(1, 2)  # for a picture repeated for five frames: the first latent frame that covers four


def with_motion(
    conditions: Conditions, state: ResumeState, portrait: Path, stream: Size, size: Size, vae: VideoVAE
) -> Conditions:
    """Replace the conditions' motion by the frames shown last, padded at the front with the portrait.

    stream: the video's size; size: the model's.
    """
    if not state.goes_on:
        return conditions
    before = [still(portrait, stream)] * (MOTION_FRAMES - len(state.frames))
    recent = np.stack([*before, *state.frames])
    return replace(conditions, motion=vae.encode(_video(resized(recent, size)))[0])


def anchor_at(state: ResumeState, size: Size, vae: VideoVAE) -> Tensor | None:
    """The anchor at the model's size, or None before there is one.

    If the size has changed, the first picture shown is used instead. A generated latent covers four frames,
    so the picture is encoded as five frames, and the second latent frame is used.
    """
    latent = (size.height // VAE_SPACE_STRIDE, size.width // VAE_SPACE_STRIDE)
    if state.anchor is None or state.anchor.shape[2:] == latent:
        return None if state.anchor is None else torch.from_numpy(state.anchor)
    assert state.picture is not None  # set before the size can change
    standing = _video(resized(state.picture[None], size))
    return vae.encode_still(standing, 1 + VAE_TIME_STRIDE)[0][:, ANCHOR]


def anchor_of(block: Tensor) -> np.ndarray:
    """The anchor: the first latent frame of a run's first block, 16 3 h w."""
    return block[:, :1].float().cpu().contiguous().numpy()


def _video(frames: np.ndarray) -> Tensor:
    """uint8 T H W 3 to the VAE encoder's input, 1 3 T H W."""
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(3, 0, 1, 2)
    return pixels.float().div(LEVELS).sub(1.0)[None]
