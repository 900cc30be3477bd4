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
        capacity, frame_tokens = self.k.shape[:2]
        count = len(own.k) // frame_tokens
        kept = min(count, capacity)
        start = (self.num_written + count - kept) % capacity
        before_end = min(kept, capacity - start)  # the others go to the ring's beginning
        for ring, fresh in ((self.k, own.k), (self.v, own.v)):
            last = fresh.unflatten(0, (count, frame_tokens))[count - kept :]
            ring[start : start + before_end].copy_(last[:before_end])
            if kept > before_end:
                ring[: kept - before_end].copy_(last[before_end:])
        self.num_written += count


class Window:
    """Room for all that a block attends to, in one piece: condition, own, past. All layers use it in turn."""

    def __init__(self, geometry: Geometry, ring: Ring, dtype: torch.dtype) -> None:
        """Room for the heads that a ring has. dtype: the residual stream's."""
        near = geometry.condition_tokens, geometry.block_tokens
        past_tokens = geometry.past_frames * geometry.frame_tokens
        shape = (sum(near) + past_tokens, *ring.k.shape[2:])
        self.k, self.v = (torch.empty(shape, dtype=dtype, device=ring.k.device) for _ in "kv")
        parts = zip(self.k.split((*near, past_tokens)), self.v.split((*near, past_tokens)), strict=True)
        self.condition, self.own, self._past = (KeysValues(k, v) for k, v in parts)

    def with_past(self, ring: Ring) -> KeysValues:
        """Copy a ring's valid frames behind condition and own; returns all that is to be attended to."""
        num_past = ring.num_valid * ring.k.shape[1]
        self._past.k[:num_past].copy_(ring.k.flatten(0, 1)[:num_past])
        self._past.v[:num_past].copy_(ring.v.flatten(0, 1)[:num_past])
        num_tokens = len(self.k) - len(self._past.k) + num_past
        return KeysValues(self.k[:num_tokens], self.v[:num_tokens])

    def near(self, num_left: int, padding: int) -> tuple[KeysValues, KeysValues, KeysValues]:
        """Condition, own, num_left tokens of the past and padding; then the last two by themselves."""
        start = len(self.k) - len(self._past.k)
        left, end = start + num_left, start + num_left + padding
        return (
            KeysValues(self.k[:end], self.v[:end]),
            KeysValues(self.k[start:left], self.v[start:left]),
            KeysValues(self.k[left:end], self.v[left:end]),
        )


def place(into: KeysValues, tokens: KeysValues, table: Tensor | None) -> None:
    """Write keys, rotated if a table is given, and values to a part of a window. All N h d."""
    into.k.copy_(tokens.k if table is None else rotate(tokens.k, table))
    into.v.copy_(tokens.v)


class LayerCache:
    """Everything that one layer keeps for a generation: text, condition, and its rings by denoising step.

    conditions: keys not rotated, by the number of the anchor; two of them while blocks of both are under way.
    vectors: TransformerLayer.vectors by denoising step.
    """

    def __init__(self, text: KeysValues, rings: dict[int, Ring]) -> None:
        self.text = text
        self.rings = rings
        self.conditions: dict[int, KeysValues] = {}
        self.vectors: dict[int, Tensor] = {}
