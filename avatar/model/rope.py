"""Rotary position embedding over (time, height, width), in float32.

A table is N 2 d float32: for each token and channel, the cosine and the sine with the sign that the channel
needs. Channels 2i and 2i + 1 are a pair. Angles are computed in float64 on the table's device, so positions
may grow without bound and there is no GPU synchronisation.
Source: Wan-Video/Wan2.2 wan/modules/model.py; for the condition's times Alibaba-Quark/LiveAvatar
liveavatar/models/wan/causal_model_s2v.py.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from avatar.geometry import BLOCK_LATENT_FRAMES, FRAMEPACK, Geometry

BASE = 10_000.0
REFERENCE_TIME = 30  # the reference frame's time position when the first block is generated
MIN_DISTANCE, MAX_DISTANCE = 4, 30  # range of the reference's random distance from the block, latent frames


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate queries or keys by their positions. x: N h d; table: N 2 d. Returns x's dtype.

    Pairs are swapped with a flip, which compiles to indexing; stacking halves would need a buffer.
    """
    cos, sin = table.unsqueeze(1).unbind(-2)
    swapped = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return (x.float() * cos + swapped.float() * sin).to(x.dtype)


def axis_channels(head_dim: int) -> tuple[int, int, int]:
    """How many of a head's channels encode time, height and width."""
    side = 2 * (head_dim // 6)
    return head_dim - 2 * side, side, side


def grid_table(times: Tensor, rows: Tensor, columns: Tensor, head_dim: int) -> Tensor:
    """The table of a time × row × column grid, times varying slowest. Positions: float64 vectors."""
    axes = []
    for position, channels in zip((times, rows, columns), axis_channels(head_dim), strict=True):
        exponent = torch.arange(0, channels, 2, dtype=torch.float64, device=position.device) / channels
        axes.append(torch.outer(position, BASE**-exponent))
    shape = (len(times), len(rows), len(columns), -1)
    angles = torch.cat(
        [
            axes[0][:, None, None].expand(shape),
            axes[1][None, :, None].expand(shape),
            axes[2][None, None, :].expand(shape),
        ],
        dim=-1,
    ).flatten(0, 2)
    sin = torch.stack((-angles.sin(), angles.sin()), dim=-1).flatten(-2)
    return torch.stack((angles.cos().repeat_interleave(2, dim=-1), sin), dim=-2).float()


def _frames(first: int, count: int, device: torch.device) -> Tensor:
    return torch.arange(first, first + count, dtype=torch.float64, device=device)


def block_table(geometry: Geometry, first_frame: int, head_dim: int, device: torch.device) -> Tensor:
    """The table of a block whose first latent frame has index first_frame in the video."""
    rows, columns = _frames(0, geometry.rows, device), _frames(0, geometry.columns, device)
    return grid_table(_frames(first_frame, BLOCK_LATENT_FRAMES, device), rows, columns, head_dim)


def reference_time(first_frame: int, distance: int) -> int:
    """The reference's time for a block: fixed until the block is within `distance`, then moving with it."""
    return REFERENCE_TIME + max(0, first_frame - (REFERENCE_TIME - distance))


class ConditionTable:
    """The table of the condition tokens: the reference frame, whose time moves, then the motion frames."""

    def __init__(self, geometry: Geometry, head_dim: int, device: torch.device) -> None:
        self.head_dim = head_dim
        self.rows, self.columns = _frames(0, geometry.rows, device), _frames(0, geometry.columns, device)
        self.motion = motion_table(geometry, head_dim, device)

    def at(self, time: int) -> Tensor:
        """The whole table with the reference frame at the given time."""
        times = _frames(time, 1, self.motion.device)
        return torch.cat([grid_table(times, self.rows, self.columns, self.head_dim), self.motion])


def motion_table(geometry: Geometry, head_dim: int, device: torch.device) -> Tensor:
    """The table of the packed motion frames: negative times, each token at a spot of the unpacked grid."""
    tables, nearest = [], 0
    for bucket in FRAMEPACK:
        nearest += bucket.num_frames
        count = bucket.num_frames // bucket.patch[0]
        times = -_spread(nearest, nearest - bucket.num_frames + 1, count)
        rows = _spread(0, geometry.rows - 1, geometry.latent_height // bucket.patch[1])
        columns = _spread(0, geometry.columns - 1, geometry.latent_width // bucket.patch[2])
        tables.append(grid_table(times.to(device), rows.to(device), columns.to(device), head_dim))
    return torch.cat(tables)


def _spread(first: int, last: int, count: int) -> Tensor:
    """`count` positions from first to last, truncated to integers."""
    return torch.from_numpy(np.linspace(first, last, count).astype(int)).double()
