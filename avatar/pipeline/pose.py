"""Encode a pose video to the latents that the transformer adds to its noisy ones, clip by clip."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from avatar.geometry import (
    BLOCK_LATENT_FRAMES,
    LEAD_IN_FRAMES,
    VAE_SPACE_STRIDE,
    VAE_TIME_STRIDE,
    Size,
)
from avatar.media.pose_video import PoseReader
from avatar.model.vae.vae import VideoVAE
from avatar.pipeline.denoiser import Conditions
from avatar.pipeline.frame_size import LEVELS, resized
from avatar.planning.estimates import POSE_CLIP_FRAMES

log = logging.getLogger(__name__)


def with_pose(
    conditions: Conditions,
    pose: Path | None,
    size: Size,
    vae: VideoVAE,
    *,
    infer_frames: int,
    first_block: int,
    num_blocks: int,
    check: Callable[[], None],
) -> Conditions:
    """The conditions with the latents of a pose video, for blocks first_block .. first_block + num_blocks.

    pose: as write_pose wrote it, or None, which leaves the conditions as they are. check: called before each
    clip. The latents stay in the host's memory.
    """
    if pose is None:
        return conditions
    with PoseReader(pose) as reader:
        latents = _latents(reader, size, vae, infer_frames, first_block, num_blocks, check)
    return replace(conditions, pose=latents)


def _latents(
    reader: PoseReader,
    size: Size,
    vae: VideoVAE,
    infer_frames: int,
    first_block: int,
    num_blocks: int,
    check: Callable[[], None],
) -> Tensor:
    """16 F h w in the VAE's dtype; F covers the whole video, zeros stand before first_block's clip.

    Each clip is encoded by itself, behind a copy of its first frame whose latent is dropped, and a video that
    ends early goes on in black. Frame i of the finished video has pose frame i: as before the speech, there
    is a lead-in. Source: Alibaba-Quark/LiveAvatar load_pose_cond, without the lead-in.
    """
    clip = min(infer_frames, POSE_CLIP_FRAMES)
    per_clip, total = clip // VAE_TIME_STRIDE, (first_block + num_blocks) * BLOCK_LATENT_FRAMES
    rows, columns = size.height // VAE_SPACE_STRIDE, size.width // VAE_SPACE_STRIDE
    out = torch.zeros(16, total, rows, columns, dtype=vae.dtype)
    black: Tensor | None = None
    for index in range(first_block * BLOCK_LATENT_FRAMES // per_clip, -(-total // per_clip)):
        check()
        was_over = reader.is_over
        pixels = resized(reader.frames(index * clip - LEAD_IN_FRAMES, clip), size)
        if was_over:  # nothing but black from here on
            black = _encoded(pixels, vae) if black is None else black
        latents = black if was_over and black is not None else _encoded(pixels, vae)
        start = index * per_clip
        out[:, start : start + per_clip] = latents[:, : total - start]
    return out


def _encoded(pixels: np.ndarray, vae: VideoVAE) -> Tensor:
    """A clip's latents, 16 t h w on the CPU. pixels: uint8 (4t, H, W, 3)."""
    video = torch.from_numpy(np.concatenate([pixels[:1], pixels])).permute(3, 0, 1, 2)
    return vae.encode(video.float().div(LEVELS).sub(1.0)[None])[0][:, 1:].to("cpu", vae.dtype)
