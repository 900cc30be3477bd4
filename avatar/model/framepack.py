"""FramePack: motion latents to tokens, coarser the farther back they are; also the patch embedding itself.

Source: Wan-Video/Wan2.2 wan/modules/s2v/motioner.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avatar.geometry import FRAMEPACK, PATCH


class PatchEmbedding(nn.Conv3d):
    """A convolution whose stride equals its kernel size, computed as a matrix product."""

    def __init__(self, in_dim: int, dim: int, patch: tuple[int, int, int] = PATCH) -> None:
        super().__init__(in_dim, dim, kernel_size=patch, stride=patch)

    def forward(self, latents: Tensor) -> Tensor:
        """C T H W latents to N C' tokens, with time varying slowest."""
        time, height, width = self.kernel_size
        patches = latents.to(self.weight.dtype)
        patches = patches.unflatten(3, (-1, width)).unflatten(2, (-1, height)).unflatten(1, (-1, time))
        patches = patches.permute(1, 3, 5, 0, 2, 4, 6).flatten(3).flatten(0, 2)
        return F.linear(patches, self.weight.flatten(1), self.bias)


class FramePacker(nn.Module):
    """One patch embedding per bucket of motion frames."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        nearest, middle, far = (bucket.patch for bucket in FRAMEPACK)
        self.proj = PatchEmbedding(in_dim, dim, nearest)
        self.proj_2x = PatchEmbedding(in_dim, dim, middle)
        self.proj_4x = PatchEmbedding(in_dim, dim, far)

    def forward(self, motion: Tensor) -> Tensor:
        """C T H W motion latents (T: the sum of the buckets) to N C' tokens, nearest frames first."""
        far_to_near = motion.split([bucket.num_frames for bucket in reversed(FRAMEPACK)], dim=1)
        embeddings = (self.proj, self.proj_2x, self.proj_4x)
        return torch.cat([embed(part) for embed, part in zip(embeddings, reversed(far_to_near), strict=True)])
