"""What attention remembers: rings of past frames, the condition cache, text keys and values.

All of it is kept per layer, so that a pipeline stage or an offloader can own some layers with their caches.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from avatar.geometry import Geometry
from avatar.models.rope import rotate


class KeysValues(NamedTuple):
    """Keys and values of some tokens: N h d each, or B N h d."""

    k: Tensor
    v: Tensor


class Ring:
    """Rotated keys and values of the last past_frames latent frames, of one layer at one denoising step.

    A block's own frames are not in the ring while it attends: they enter afterwards, over the oldest ones. So
    the ring needs no room for them, and holds a block less than the attention window.
    """

    def __init__(self, k: Tensor, v: Tensor) -> None:
        """k, v: frames, tokens of a frame, h, d; their contents do not matter."""
        self.k, self.v = k, v
        self.num_written = 0  # latent frames, ever

    @classmethod
    def allocate(
        cls, geometry: Geometry, num_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device | str
    ) -> Ring:
        """An empty ring; writing its zeros also claims the memory now, not in the middle of a run."""
        shape = (geometry.past_frames, geometry.frame_tokens, num_heads, head_dim)
        return cls(
            torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device)
        )

    @property
    def num_valid(self) -> int:
        """Latent frames held; they fill the ring's first places, in no particular order."""
        return min(self.num_written, len(self.k))

    def append(self, own: KeysValues) -> None:
        """Write a block's frames, oldest first out; in place. own: rotated, N h d, N a whole number of
        frames."""
        k, v = (t.unflatten(0, (-1, self.k.shape[1])) for t in own)
        capacity, count = len(self.k), len(k)
        for frame in range(max(0, count - capacity), count):
            slot = (self.num_written + frame) % capacity
            self.k[slot].copy_(k[frame])
            self.v[slot].copy_(v[frame])
        self.num_written += count


def window(own: KeysValues, condition: KeysValues, condition_table: Tensor, past: KeysValues) -> KeysValues:
    """All keys and values that a block may attend to, in one piece: condition, own, past.

    own: rotated, N h d. condition: keys not rotated. past: a ring's tensors, whole. Of the result, the rows
    beyond the ring's valid frames are to be cut off; static shapes let one compiled graph serve every block.
    """
    dtype = own.k.dtype
    return KeysValues(
        torch.cat([rotate(condition.k, condition_table), own.k, past.k.flatten(0, 1).to(dtype)]),
        torch.cat([condition.v, own.v, past.v.flatten(0, 1).to(dtype)]),
    )


class LayerCache:
    """Everything that one layer keeps for a generation: text, condition, and its rings by denoising step.

    conditions: keys not rotated, by the number of the anchor; two of them while blocks of both are under way.
    """

    def __init__(self, text: KeysValues, rings: dict[int, Ring]) -> None:
        self.text = text
        self.rings = rings
        self.conditions: dict[int, KeysValues] = {}
