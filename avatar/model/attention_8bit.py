"""Attention in 8 bits: keys in int8 and values in fp8, stored and attended to in that form.

A block's keys and values are quantised once, when the block is generated. First the keys' mean over the first
block is subtracted: softmax is invariant to a shift common to all keys, and the common part would use up most
of the 8 bits. The values' mean is subtracted too and added to the result, since weights add up to 1: tensor
cores drop the low bits of a long sum of products in fp8, which matters where all values have something in
common. A head's keys share one scale, and so do its values: a scale per token would cost an instruction per
score, a tenth of the time. In memory the tokens of a value channel are contiguous, as the product of weights
and values reads them, in PERMUTED order within every SLOT_TOKENS.
Everything here is plain PyTorch: it runs on a CPU, and is the reference for the kernels.
Source: SageAttention2, arXiv 2411.10958 (smoothing, int8 by fp8).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from avatar.geometry import Geometry
from avatar.model.kv_cache import KeysValues, Ring
from avatar.model.quantize import FLOAT8, INT8_LARGEST, LARGEST, TINIEST
from avatar.model.rope import rotate

# How many times larger than the first block's largest key or value later ones may be. For values it costs
# nothing, since e4m3 has exponents; normed keys hardly grow, and those that do are clamped.
KEY_HEADROOM, VALUE_HEADROOM = 1.5, 4.0
# The values of a slot are in PERMUTED order. A frame is whole slots, since its sides are multiples of 64 px.
SLOT_TOKENS = 16
# In a tensor core product, a thread holds two neighbouring columns of each half of 16, but as the operand of
# the next product it needs four neighbouring ones; in this order they are the same columns.
PERMUTED = tuple(
    8 * half + 2 * quarter + odd for quarter in range(4) for half in range(2) for odd in range(2)
)
WEIGHT_EXPONENT = 8  # softmax weights are multiplied by 2^8 in e4m3, whose largest number is 448
KEY_TILE = 128  # same as in the kernel, since rounding depends on the largest score so far


class Calibration(NamedTuple):
    """The constants that a ring's keys and values are quantised with, fixed by its first block.

    key_mean, value_mean: h d float32, subtracted from every key and value. key_scale, value_scale: h float32,
    the factors that restore a head's keys and values, but for the mean.
    """

    key_mean: Tensor
    key_scale: Tensor
    value_mean: Tensor
    value_scale: Tensor

    @classmethod
    def of(cls, own: KeysValues, condition: KeysValues) -> Calibration:
        """Calibrate from the first block's own keys and values, N h d, and the condition's, M h d.

        Keys are rotated by their positions.
        """
        keys, values = (_mean_and_largest(own[part], condition[part]) for part in range(2))
        return cls(
            keys[0],
            keys[1] * (KEY_HEADROOM / INT8_LARGEST),
            values[0],
            values[1] * (VALUE_HEADROOM / LARGEST),
        )


class Queries(NamedTuple):
    """Queries in int8, N h d, and their scales, N h float32."""

    values: Tensor
    scale: Tensor


class EightBit(NamedTuple):
    """Keys N h d int8, and values h d N' fp8; N' is N rounded up to whole slots."""

    k: Tensor
    v: Tensor

    def first(self, count: int) -> EightBit:
        """The first `count` tokens; values in whole slots."""
        return EightBit(self.k[:count], self.v[..., : whole_slots(count)])


class EightBitRing(Ring):
    """A ring in 8 bits whose frames are attended to in place, without a copy.

    The tokens of all frames are contiguous in memory; `tensors` returns views with frames first.
    """

    def __init__(self, k: Tensor, v: Tensor) -> None:
        """k: frames, tokens, h, d int8; v: frames, h, d, tokens fp8; any strides."""
        super().__init__(k, v)
        self.calibration: Calibration | None = None

    @classmethod
    def empty(
        cls, geometry: Geometry, num_heads: int, head_dim: int, device: torch.device | str
    ) -> EightBitRing:
        """An empty ring; writing its zeros also claims the memory now."""
        frames, tokens = geometry.past_frames, geometry.frame_tokens
        k = torch.zeros(frames, tokens, num_heads, head_dim, dtype=torch.int8, device=device)
        v = torch.zeros(num_heads, head_dim, frames * tokens, dtype=FLOAT8, device=device)
        return cls(k, _frames_first(v, tokens))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """See Ring."""
        return self.k, self.v

    def like(self, tensors: Sequence[Tensor]) -> EightBitRing:
        """See Ring."""
        return EightBitRing(*tensors)

    def resume(self, other: Ring) -> None:
        """See Ring."""
        super().resume(other)
        assert isinstance(other, EightBitRing)
        self.calibration = other.calibration

    def past(self) -> EightBit:
        """The frames in the ring."""
        values = EightBit(self.k.flatten(0, 1), self.v.movedim(0, -2).flatten(-2))
        return values.first(self.num_valid * self.k.shape[1])

    def by_frames(self, own: Sequence[Tensor]) -> Sequence[Tensor]:
        """See Ring; own: an EightBit of whole frames."""
        k, v = own
        tokens = self.k.shape[1]
        return k.unflatten(0, (-1, tokens)), _in_eights(_frames_first(v, tokens))

    @property
    def written(self) -> tuple[Tensor, ...]:
        """See Ring."""
        return self.k, _in_eights(self.v)


class EightBitWindow:
    """A buffer for a block's own tokens, followed by the condition's; all layers use it in turn."""

    def __init__(self, geometry: Geometry, num_heads: int, head_dim: int, device: torch.device | str) -> None:
        self.num_own = geometry.block_tokens
        self.num_tokens = self.num_own + geometry.condition_tokens
        slots = whole_slots(self.num_tokens)
        self.near = EightBit(
            torch.zeros(self.num_tokens, num_heads, head_dim, dtype=torch.int8, device=device),
            torch.zeros(num_heads, head_dim, slots, dtype=FLOAT8, device=device),
        )

    @property
    def own(self) -> EightBit:
        """The block's part."""
        return self.near.first(self.num_own)

    @property
    def condition(self) -> EightBit:
        """The condition's part; it starts at a slot, since a block is whole slots."""
        k, v = self.near
        return EightBit(k[self.num_own :], v[..., self.num_own :])


def whole_slots(num_tokens: int) -> int:
    """A number of tokens, rounded up to whole slots."""
    return -(-num_tokens // SLOT_TOKENS) * SLOT_TOKENS


def empty_ring(
    geometry: Geometry, num_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device | str
) -> Ring:
    """An empty ring; for dtype int8, the kind that 8-bit attention reads."""
    if dtype == torch.int8:
        return EightBitRing.empty(geometry, num_heads, head_dim, device)
    return Ring.allocate(geometry, num_heads, head_dim, dtype, device)


def quantise_heads(values: Tensor) -> Queries:
    """Quantise N h d to int8 with one scale per token and head; the largest value becomes 127."""
    largest = values.float().abs().amax(dim=-1, keepdim=True).clamp(min=TINIEST)
    scaled = values.float() * (INT8_LARGEST / largest)
    return Queries(scaled.round().to(torch.int8), largest[..., 0] / INT8_LARGEST)


def write(into: EightBit, own: KeysValues, calibration: Calibration, table: Tensor | None = None) -> None:
    """Quantise keys (rotated if a table is given) and values, N h d, into a part of a window.

    The last slot of values is padded with zeros.
    """
    k, v = own
    k = (k if table is None else rotate(k, table)).float() - calibration.key_mean
    scaled = (k * (1.0 / calibration.key_scale)[:, None]).clamp(-INT8_LARGEST, INT8_LARGEST)
    into.k.copy_(scaled.round().to(torch.int8))
    v = v.float() - calibration.value_mean
    scaled = (v * (1.0 / calibration.value_scale)[:, None]).clamp(-LARGEST, LARGEST)
    padded = F.pad(scaled, (0, 0, 0, 0, 0, into.v.shape[-1] - len(v)))
    order = torch.tensor(PERMUTED, device=v.device)
    slots = padded.unflatten(0, (-1, SLOT_TOKENS))[:, order]
    into.v.copy_(slots.flatten(0, 1).permute(1, 2, 0).to(FLOAT8))


def attend(q: Queries, parts: Sequence[EightBit], calibration: Calibration, dtype: torch.dtype) -> Tensor:
    """Attention of queries to every key of the parts, tile by tile: N h d in the given dtype."""
    num_queries, num_heads, head_dim = q.values.shape
    total = q.scale.new_zeros(num_heads, num_queries)
    top = torch.full_like(total, -math.inf)
    out = q.scale.new_zeros(num_heads, num_queries, head_dim)
    factor = q.scale.t() * calibration.key_scale[:, None] * (head_dim**-0.5 / math.log(2))
    queries = q.values.transpose(0, 1).float()
    for keys, values in _tiles(parts):
        scores = queries @ keys.float()  # exact: integers below 2^24
        new_top = torch.maximum(top, scores.amax(dim=-1))
        weights = torch.exp2((scores - new_top[..., None]) * factor[..., None] + WEIGHT_EXPONENT)
        kept = torch.exp2((top - new_top) * factor)
        total = total * kept + weights.sum(dim=-1)
        out = out * kept[..., None] + weights.to(FLOAT8).float() @ values.float()
        top = new_top
    out = out / total[..., None] * calibration.value_scale[:, None, None]
    return (out.transpose(0, 1) + calibration.value_mean).to(dtype)


def _mean_and_largest(own: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
    """The own tokens' mean, h d, and the largest distance from it of any token, by head: h."""
    mean = own.float().mean(dim=0)
    largest = [(part.float() - mean).abs().amax(dim=(0, 2)) for part in (own, condition)]
    return mean, torch.maximum(*largest).clamp(min=TINIEST)


def _tiles(parts: Sequence[EightBit]) -> Iterator[tuple[Tensor, Tensor]]:
    """Tiles of keys h d n, and values h n d in the keys' order."""
    for k, v in parts:
        order = torch.tensor(PERMUTED, device=v.device).argsort()
        values = v.unflatten(-1, (-1, SLOT_TOKENS))[..., order].flatten(-2)
        for start in range(0, len(k), KEY_TILE):
            end = min(start + KEY_TILE, len(k))
            yield k[start:end].permute(1, 2, 0), values[..., start:end].transpose(-2, -1)


def _in_eights(values: Tensor) -> Tensor:
    """View eight tokens' values as one int64: a GPU copies these in a quarter of the time of single bytes."""
    return values.view(torch.int64)


def _frames_first(values: Tensor, frame_tokens: int) -> Tensor:
    """View ... frames·tokens as frames ... tokens."""
    return values.unflatten(-1, (-1, frame_tokens)).movedim(-2, 0)
