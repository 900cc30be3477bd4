"""Queries, keys and values on their way to attention, in one pass each on a GPU.

A program takes a token: its norm over the full width, its rotation, each head's scale. Values are turned
over instead, so that tokens lie side by side. The slow twins: layer.Attention, rope.rotate and eight_bit's.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from avatar.model.eight_bit import INT8_LARGEST, Calibration, EightBit, Queries
from avatar.model.kv_cache import KeysValues
from avatar.model.quantize import LARGEST, TINIEST

VALUE_TOKENS = 128  # that a program turns over
NUM_WARPS = 4


def quantise_queries(
    q: Tensor, norm: Tensor | None = None, table: Tensor | None = None, eps: float = 0.0
) -> Queries:
    """Queries N h d in int8; first RMS-normed by a weight, C, and rotated by a table, if given."""
    values = torch.empty(q.shape, dtype=torch.int8, device=q.device)
    scale = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    _run(q, norm, table, None, values, scale, eps)
    return Queries(values, scale)


def write(
    into: EightBit,
    own: KeysValues,
    calibration: Calibration,
    table: Tensor | None = None,
    norm: Tensor | None = None,
    eps: float = 0.0,
) -> None:
    """See eight_bit.write; norm, the keys', and table as in quantise_queries.

    Keys' scales come token by token, and are turned over with the values.
    """
    k, v = own
    scale = torch.empty(k.shape[:2], dtype=torch.float32, device=k.device)
    _run(k, norm, table, calibration.mean, into.k, scale, eps)
    num_tokens, num_heads, head_dim = v.shape
    row = into.v.shape[-1]
    assert v.stride()[1:] == (head_dim, 1)
    _turn[(triton.cdiv(row, VALUE_TOKENS), num_heads)](
        v,
        calibration.value_scale,
        into.v,
        scale,
        into.k_scale,
        num_tokens,
        row,
        v.stride(0),
        into.v.stride(1),
        num_heads,
        head_dim,
        triton.next_power_of_2(head_dim),
        VALUE_TOKENS,
        LARGEST,
    )


def rotated(x: Tensor, norm: Tensor, table: Tensor, eps: float) -> Tensor:
    """Queries or keys, N h d, normed and rotated, in their own dtype."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _run(x, norm, table, None, out, None, eps)
    return out


def _run(
    x: Tensor,
    norm: Tensor | None,
    table: Tensor | None,
    mean: Tensor | None,
    out: Tensor,
    scale: Tensor | None,
    eps: float,
) -> None:
    num_tokens, num_heads, head_dim = x.shape
    assert x.stride()[1:] == (head_dim, 1)
    assert out.stride()[1:] == (head_dim, 1)
    _heads[(num_tokens,)](
        x,
        norm,
        table,
        mean,
        out,
        scale,
        x.stride(0),
        out.stride(0),
        eps,
        num_heads,
        triton.next_power_of_2(num_heads),
        head_dim,
        triton.next_power_of_2(head_dim),
        INT8_LARGEST,
        TINIEST,
        num_warps=NUM_WARPS,
    )


@triton.jit
def _heads(  # type: ignore[no-untyped-def]
    x,
    norm,
    table,
    mean,
    out,
    scale,
    x_row,
    out_row,
    eps,
    HEADS: tl.constexpr,
    HEADS_2: tl.constexpr,
    DIM: tl.constexpr,
    DIM_2: tl.constexpr,
    INT8: tl.constexpr,
    TINY: tl.constexpr,
):
    """One token."""
    token = tl.program_id(0).to(tl.int64)
    head, channel = tl.arange(0, HEADS_2)[:, None], tl.arange(0, DIM_2)[None, :]
    inside = (head < HEADS) & (channel < DIM)
    place = head * DIM + channel
    given = tl.load(x + token * x_row + place, inside, 0.0)
    v = given.to(tl.float32)
    if norm is not None:
        square = tl.sum(tl.sum(v * v, 1), 0) / (HEADS * DIM)
        v = v * tl.rsqrt(square + eps) * tl.load(norm + place, inside, 0.0).to(tl.float32)
        v = v.to(given.dtype).to(tl.float32)
    even, odd = tl.split(tl.reshape(v, [HEADS_2, DIM_2 // 2, 2]))
    pair = 2 * tl.arange(0, DIM_2 // 2)[None, :]
    if table is not None:
        turn = table + token * (2 * DIM) + pair
        there = pair < DIM
        first = even * tl.load(turn, there, 0.0) + odd * tl.load(turn + DIM, there, 0.0)
        second = odd * tl.load(turn + 1, there, 0.0) + even * tl.load(turn + DIM + 1, there, 0.0)
        even, odd = first.to(given.dtype).to(tl.float32), second.to(given.dtype).to(tl.float32)
    if mean is not None:
        common = tl.reshape(tl.load(mean + place, inside, 0.0), [HEADS_2, DIM_2 // 2, 2])
        common_even, common_odd = tl.split(common)
        even -= common_even
        odd -= common_odd
    if scale is not None:
        largest = tl.maximum(tl.max(tl.maximum(tl.abs(even), tl.abs(odd)), 1, keep_dims=True), TINY)
        each = largest / INT8
        # 1.5 * 2^23, added and taken away again, rounds to the nearest whole number, halves to the even one.
        even = (even / each + 12582912.0) - 12582912.0
        odd = (odd / each + 12582912.0) - 12582912.0
        tl.store(scale + token * HEADS + head, each, head < HEADS)
    v = tl.reshape(tl.join(even, odd), [HEADS_2, DIM_2])
    tl.store(out + token * out_row + place, v.to(out.dtype.element_ty), inside)


@triton.jit
def _turn(  # type: ignore[no-untyped-def]
    v,
    scales,
    out,
    key_scales,
    out_key_scales,
    num_tokens,
    row,
    v_row,
    out_row,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_2: tl.constexpr,
    TOKENS: tl.constexpr,
    LARGEST: tl.constexpr,
):
    """Some tokens of one head: N h d to h d N', every 16 of them in eight_bit.PERMUTED order.

    The scales of their keys, N h, too, in the tokens' own order.
    """
    head = tl.program_id(1)
    place = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    key_scale = tl.load(key_scales + place * HEADS + head, place < num_tokens, 0.0)
    tl.store(out_key_scales + head * out_row + place, key_scale, place < num_tokens)
    inner = place % 16
    token = place - inner + inner // 2 % 2 * 8 + inner // 4 * 2 + inner % 2
    channel = tl.arange(0, DIM_2)
    source = v + token[:, None].to(tl.int64) * v_row + head * DIM + channel[None, :]
    there = (token < num_tokens)[:, None] & (channel < DIM)[None, :]
    values = tl.load(source, there, 0.0).to(tl.float32) / tl.load(scales + head)
    values = tl.minimum(tl.maximum(values, -LARGEST), LARGEST)
    target = out + (head * DIM + channel)[:, None].to(tl.int64) * out_row + place[None, :]
    tl.store(target, tl.trans(values).to(tl.float8e4nv), (channel < DIM)[:, None] & (place < row)[None, :])
