"""The KV cache: ring buffers of past frames, the condition cache, and the text's keys and values.

Everything is kept per layer, so that a pipeline stage or an offloader can own some layers with their caches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from avatar.geometry import Geometry
from avatar.model.quantize import FLOAT8, quantise_rows, widen_rows
from avatar.model.rope import rotate


class KeysValues(NamedTuple):
    """Keys and values of some tokens: N h d each, or B N h d."""

    k: Tensor
    v: Tensor


class ShortText(NamedTuple):
    """A short prompt prepared for one layer, so that a query needs only a weighted sum, no output projection.

    keys: R h d. outputs: h·R C, each token's value per head, already output-projected. counts: R float32, log
    of the number of tokens of the padded prompt that each row stands for.
    """

    keys: Tensor
    outputs: Tensor
    counts: Tensor


class Ring:
    """Ring buffer of one layer's rotated keys and values at one denoising step: past_frames latent frames.

    A block's own frames are not in the ring while the block attends: they are written afterwards, over the
    oldest ones. The ring is therefore one block shorter than the attention window. In fp8 it has one scale
    per token and head for the key, and one for the value.
    """

    def __init__(self, k: Tensor, v: Tensor, scales: KeysValues | None = None) -> None:
        """k, v: frames, tokens per frame, h, d; scales: frames, tokens, h, 1 float32; any contents."""
        self.k, self.v, self.scales = k, v, scales
        self.num_written = 0  # latent frames, in total

    @classmethod
    def allocate(
        cls, geometry: Geometry, num_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device | str
    ) -> Ring:
        """An empty ring; writing its zeros also claims the memory now rather than in the middle of a run."""
        layout = ring_layout(geometry, num_heads, head_dim, dtype)
        k, v, *scales = [torch.zeros(shape, dtype=dtype, device=device) for shape, dtype in layout]
        return cls(k, v, KeysValues(*scales) if scales else None)

    def like(self, tensors: Sequence[Tensor]) -> Ring:
        """An empty ring of the same kind over the given tensors, which are shaped like this one's."""
        k, v, *scales = tensors
        return Ring(k, v, KeysValues(*scales) if scales else None)

    def resume(self, other: Ring) -> None:
        """Continue from another ring, whose frames have already been copied into this one."""
        self.num_written = other.num_written

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors of the ring; the first axis of each is frames."""
        return (self.k, self.v, *(self.scales or ()))

    @property
    def written(self) -> tuple[Tensor, ...]:
        """The same tensors, viewed as append writes them."""
        return self.tensors

    @property
    def num_valid(self) -> int:
        """Latent frames in the ring; they fill its first slots, in no particular order."""
        return min(self.num_written, len(self.k))

    def places(self, count: int) -> list[slice]:
        """The slots that the next `count` frames go to: one slice, or two where they wrap around the end.

        Of more frames than the ring holds, only the last ones are written.
        """
        capacity = len(self.k)
        kept = min(count, capacity)
        start = (self.num_written + count - kept) % capacity
        before_end = min(kept, capacity - start)
        runs = slice(start, start + before_end), slice(0, kept - before_end)
        return [run for run in runs if run.stop > run.start]

    def append(self, own: Sequence[Tensor]) -> None:
        """Write a block's frames in place, over the oldest ones.

        own: as `tensors`, but with N for frames and tokens (a whole number of frames); keys are rotated.
        """
        fresh = self.by_frames(own)
        count = len(fresh[0])
        places = self.places(count)
        for ring, frames in zip(self.written, fresh, strict=True):
            parts = frames[-len(ring) :].split([place.stop - place.start for place in places])
            for place, part in zip(places, parts, strict=True):
                ring[place].copy_(part)
        self.num_written += count

    def by_frames(self, own: Sequence[Tensor]) -> Sequence[Tensor]:
        """Reshape a block's tensors, as passed to append, to have frames first."""
        return [values.unflatten(0, (-1, self.k.shape[1])) for values in own]


def ring_layout(
    geometry: Geometry, num_heads: int, head_dim: int, dtype: torch.dtype
) -> Sequence[tuple[Sequence[int], torch.dtype]]:
    """Shape and dtype of each of a ring's tensors."""
    tokens = geometry.past_frames, geometry.frame_tokens, num_heads
    kept = [((*tokens, head_dim), dtype)] * 2
    scales = [((*tokens, 1), torch.float32)] * 2
    return kept + scales if dtype == FLOAT8 else kept


def quantise_tokens(own: KeysValues) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Quantise a block's keys and values, N h d, for an fp8 ring: keys, values, then their scales, N h 1."""
    (k, k_scale), (v, v_scale) = (quantise_rows(values) for values in own)
    return k, v, k_scale, v_scale


def widen_tokens(into: KeysValues, past: KeysValues, scales: KeysValues) -> None:
    """Write an fp8 ring, N h d with scales N h 1, into a part of a window, in the window's dtype."""
    for target, values, scale in zip(into, past, scales, strict=True):
        target.copy_(widen_rows(values, scale, target.dtype))


class Window:
    """One contiguous buffer for everything a block attends to: condition, own, past; all layers share it."""

    def __init__(
        self, geometry: Geometry, ring: Ring, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        """Allocate for as many heads as the ring has, on the compute device. dtype: the residual stream's."""
        near = geometry.condition_tokens, geometry.block_tokens
        past_tokens = geometry.past_frames * geometry.frame_tokens
        shape = (sum(near) + past_tokens, *ring.k.shape[2:])
        self.k, self.v = (torch.empty(shape, dtype=dtype, device=device) for _ in "kv")
        parts = zip(self.k.split((*near, past_tokens)), self.v.split((*near, past_tokens)), strict=True)
        self.condition, self.own, self._past = (KeysValues(k, v) for k, v in parts)

    def with_past(self, ring: Ring, widen: Callable[..., None] = widen_tokens) -> KeysValues:
        """Copy a ring's valid frames behind condition and own, and return all keys and values to attend to.

        An fp8 ring is widened whole, so that one compiled graph serves it however full it is.
        """
        num_past = ring.num_valid * ring.k.shape[1]
        if ring.scales is not None:
            past, scales = ((pair.k.flatten(0, 1), pair.v.flatten(0, 1)) for pair in (ring, ring.scales))
            widen(self._past, KeysValues(*past), KeysValues(*scales))
        else:
            self._past.k[:num_past].copy_(ring.k.flatten(0, 1)[:num_past])
            self._past.v[:num_past].copy_(ring.v.flatten(0, 1)[:num_past])
        num_tokens = len(self.k) - len(self._past.k) + num_past
        return KeysValues(self.k[:num_tokens], self.v[:num_tokens])

    def near(self, num_left: int, padding: int) -> tuple[KeysValues, KeysValues, KeysValues]:
        """Views of condition, own, num_left past tokens and padding together; then of the last two alone."""
        start = len(self.k) - len(self._past.k)
        left, end = start + num_left, start + num_left + padding
        return (
            KeysValues(self.k[:end], self.v[:end]),
            KeysValues(self.k[start:left], self.v[start:left]),
            KeysValues(self.k[left:end], self.v[left:end]),
        )


def place(into: KeysValues, tokens: KeysValues, table: Tensor | None) -> None:
    """Write keys (rotated if a table is given) and values into a part of a window. All N h d."""
    into.k.copy_(tokens.k if table is None else rotate(tokens.k, table))
    into.v.copy_(tokens.v)


class LayerCache:
    """One layer's state during a generation: text, condition, and its rings by denoising step.

    conditions: keys and values, keys not rotated, by anchor number; two while blocks of both anchors are in
    progress. vectors: TransformerLayer.vectors by denoising step.
    """

    def __init__(self, text: KeysValues | ShortText, rings: dict[int, Ring]) -> None:
        self.text = text
        self.rings = rings
        self.conditions: dict[int, KeysValues] = {}
        self.vectors: dict[int, Tensor] = {}
