"""Prepare queries, keys and values for attention, in one pass each on a GPU.

One program handles one token: its norm over the full width, its rotation, each head's scale. Values are
transposed instead, so that tokens are contiguous. The reference implementations are rope.rotate,
transformer_layer.Attention and attention_8bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from avatar.model.attention_8bit import Calibration, EightBit, Queries
from avatar.model.kv_cache import KeysValues
from avatar.model.quantize import INT8_LARGEST, LARGEST, TINIEST

VALUE_TOKENS = 128  # transposed by one program
PIECE = 1024  # channels of a token at a time: whole heads, 16 bytes per thread
NUM_WARPS = 4


def quantise_queries(
    q: Tensor, norm: Tensor | None = None, table: Tensor | None = None, eps: float = 0.0
) -> Queries:
    """Queries N h d in int8; first RMS-normed with weight norm, C, and rotated by a table, if given."""
    values = torch.empty(q.shape, dtype=torch.int8, device=q.device)
    scale = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    _run(q, norm, table, values, eps, scale=scale)
    return Queries(values, scale)


def write(
    into: EightBit,
    own: KeysValues,
    calibration: Calibration,
    table: Tensor | None = None,
    norm: Tensor | None = None,
    eps: float = 0.0,
) -> None:
    """See attention_8bit.write; norm (for keys) and table as in quantise_queries."""
    k, v = own
    _run(k, norm, table, into.k, eps, mean=calibration.key_mean, fixed=calibration.key_scale)
    num_tokens, num_heads, head_dim = v.shape
    row = into.v.shape[-1]
    assert v.stride()[1:] == (head_dim, 1)
    _turn[(triton.cdiv(row, VALUE_TOKENS), num_heads)](
        v,
        calibration.value_mean,
        calibration.value_scale,
        into.v,
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
    """Queries or keys, N h d, RMS-normed and rotated, in their own dtype."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _run(x, norm, table, out, eps)
    return out


def _run(
    x: Tensor,
    norm: Tensor | None,
    table: Tensor | None,
    out: Tensor,
    eps: float,
    *,
    mean: Tensor | None = None,
    scale: Tensor | None = None,
    fixed: Tensor | None = None,
) -> None:
    """scale: to quantise by each token and head, where the scales go; or fixed: each head's scale."""
    num_tokens, num_heads, head_dim = x.shape
    assert x.stride()[1:] == (head_dim, 1)
    assert out.stride()[1:] == (head_dim, 1)
    dim_2 = triton.next_power_of_2(head_dim)
    _heads[(num_tokens,)](
        x,
        norm,
        table,
        mean,
        out,
        scale,
        fixed,
        x.stride(0),
        out.stride(0),
        eps,
        num_heads,
        min(max(PIECE // dim_2, 1), triton.next_power_of_2(num_heads)),
        head_dim,
        dim_2,
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
    fixed,
    x_row,
    out_row,
    eps,
    HEADS: tl.constexpr,
    AT_ONCE: tl.constexpr,
    DIM: tl.constexpr,
    DIM_2: tl.constexpr,
    INT8: tl.constexpr,
    TINY: tl.constexpr,
):
    """One program: one token, AT_ONCE heads at a time."""
    token = tl.program_id(0).to(tl.int64)
    dtype: tl.constexpr = x.dtype.element_ty
    COUNT: tl.constexpr = (HEADS + AT_ONCE - 1) // AT_ONCE
    some, channel = tl.arange(0, AT_ONCE)[:, None], tl.arange(0, DIM_2)[None, :]
    place = some * DIM + channel
    pieces = ()
    square = tl.zeros([AT_ONCE, DIM_2], tl.float32)
    for i in tl.static_range(COUNT):
        inside = (i * AT_ONCE + some < HEADS) & (channel < DIM)
        piece = tl.load(x + token * x_row + i * AT_ONCE * DIM + place, inside, 0.0)
        square += piece.to(tl.float32) * piece.to(tl.float32)
        pieces = pieces + (piece,)  # type: ignore[assignment]
    length = 1.0
    if norm is not None:
        length = tl.rsqrt(tl.sum(tl.sum(square, 1), 0) / (HEADS * DIM) + eps)
    if table is not None:
        # Loaded per head: a single row gets another thread layout, and everything else is moved to match.
        turn = tl.broadcast_to(table + token * (2 * DIM) + channel, (AT_ONCE, DIM_2))
        cos_even, cos_odd = _pairs(tl.load(turn, channel < DIM, 0.0), AT_ONCE, DIM_2)
        sin_even, sin_odd = _pairs(tl.load(turn + DIM, channel < DIM, 0.0), AT_ONCE, DIM_2)
    for i in tl.static_range(COUNT):
        head = i * AT_ONCE + some
        inside = (head < HEADS) & (channel < DIM)
        v = pieces[i].to(tl.float32)  # type: ignore[var-annotated]
        if norm is not None:
            v = v * length * tl.load(norm + i * AT_ONCE * DIM + place, inside, 0.0).to(tl.float32)
            v = v.to(dtype).to(tl.float32)
        if table is not None:
            even, odd = _pairs(v, AT_ONCE, DIM_2)
            first = even * cos_even + odd * sin_even
            second = odd * cos_odd + even * sin_odd
            v = tl.reshape(tl.join(first, second), [AT_ONCE, DIM_2]).to(dtype).to(tl.float32)
        if mean is not None:
            v -= tl.load(mean + i * AT_ONCE * DIM + place, inside, 0.0)
        if scale is not None:
            largest = tl.maximum(tl.max(tl.abs(v), 1, keep_dims=True), TINY)
            v *= INT8 / largest
            tl.store(scale + token * HEADS + head, largest / INT8, head < HEADS)
        if fixed is not None:
            v *= tl.div_rn(1.0, tl.load(fixed + head, head < HEADS, 1.0))
            v = tl.minimum(tl.maximum(v, -INT8), INT8)
        if scale is not None or fixed is not None:
            v = (v + 12582912.0) - 12582912.0  # rounds to nearest, half to even
        tl.store(out + token * out_row + i * AT_ONCE * DIM + place, v.to(out.dtype.element_ty), inside)


@triton.jit
def _pairs(v, ROWS: tl.constexpr, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """Split into even and odd channels."""
    return tl.split(tl.reshape(v, [ROWS, WIDTH // 2, 2]))


@triton.jit
def _turn(  # type: ignore[no-untyped-def]
    v,
    means,
    scales,
    out,
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
    """One program: TOKENS tokens of one head, N h d to h d N', each 16 in attention_8bit.PERMUTED order."""
    head = tl.program_id(1)
    place = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    inner = place % 16
    token = place - inner + inner // 2 % 2 * 8 + inner // 4 * 2 + inner % 2
    channel = tl.arange(0, DIM_2)
    source = v + token[:, None].to(tl.int64) * v_row + head * DIM + channel[None, :]
    there = (token < num_tokens)[:, None] & (channel < DIM)[None, :]
    mean = tl.load(means + head * DIM + channel, channel < DIM, 0.0)
    values = tl.load(source, there, 0.0).to(tl.float32) - mean[None, :]
    values *= tl.div_rn(1.0, tl.load(scales + head))
    values = tl.where(there, tl.minimum(tl.maximum(values, -LARGEST), LARGEST), 0.0)
    target = out + (head * DIM + channel)[:, None].to(tl.int64) * out_row + place[None, :]
    tl.store(target, tl.trans(values.to(tl.float8e4nv)), (channel < DIM)[:, None] & (place < row)[None, :])
