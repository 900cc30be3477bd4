"""The elementwise work between two products of a layer, in one pass over each token on a GPU.

PyTorch's compiler needs two or three passes, since a token's scale depends on all of its channels. Here a
token stays in registers, in pieces whose size is a power of two, since the model's widths are not. The
reference implementations are in transformer_layer, and quantize.hadamard and quantise_rows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from avatar.model.quantize import INT8, INT8_LARGEST, TINIEST, rotation_block

SHORT_ROWS, SHORT_HEADS = 32, 4  # per program of short_weights
PIECE, WIDE_PIECE = 1024, 2048  # channels per piece of a token of up to WIDE channels, and of more
WIDE = 8192
WARPS, WIDE_WARPS = 4, 8  # per program, which processes one token: 16 bytes per thread and piece


class Tokens(NamedTuple):
    """Tokens N C, ready for a product: in the residual stream's dtype, or in 8 bits with scales N 1.

    In int8 they are rotated, as weights are.
    """

    values: Tensor
    scale: Tensor | None


def normed(
    x: Tensor, scale: Tensor, shift: Tensor, eps: float, like: torch.dtype, *, plus_one: bool
) -> Tokens:
    """Layer norm of tokens N C, then scale and shift, C each, in the dtype `like`.

    plus_one: add 1 to the scale.
    """
    return _run(x, None, None, scale, shift, eps, like, plus_one)[1]


def added(x: Tensor, y: Tensor, gate: Tensor | None) -> Tensor:
    """The residual, N C, plus y times a gate, C."""
    return _run(x, y, gate, None, None, 0.0, x.dtype, False)[0]


def added_and_normed(
    x: Tensor,
    y: Tensor,
    gate: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    eps: float,
    like: torch.dtype,
    *,
    plus_one: bool,
) -> tuple[Tensor, Tokens]:
    """Both of the above: the new residual, and its norm."""
    return _run(x, y, gate, scale, shift, eps, like, plus_one)


def quantised(x: Tensor, like: torch.dtype, *, gelu: bool = False) -> Tokens:
    """Tokens N C in the dtype `like`. gelu: apply GELU (tanh) first."""
    out, scale = _rows_like(x, like)
    width = x.shape[-1]
    piece, warps = _cut(width)
    _activate[(len(x),)](
        x, out, scale, x.stride(0), width, piece, gelu, _block(width, like), _largest(like), TINIEST,
        num_warps=warps,
    )  # fmt: skip
    return Tokens(out, scale)


def short_weights(q: Tensor, norm: Tensor, eps: float, keys: Tensor, counts: Tensor) -> Tensor:
    """attention.few_keys_weights of queries, N h d, RMS-normed first with weight norm, C."""
    num_tokens, num_heads, head_dim = q.shape
    num_keys = len(keys)
    out = torch.empty(num_tokens, num_heads * num_keys, dtype=q.dtype, device=q.device)
    length = torch.empty(num_tokens, dtype=torch.float32, device=q.device)
    piece, warps = _cut(num_heads * head_dim)
    _lengths[(num_tokens,)](q, length, q.stride(0), eps, num_heads * head_dim, piece, num_warps=warps)
    _short[(triton.cdiv(num_tokens, SHORT_ROWS), triton.cdiv(num_heads, SHORT_HEADS))](
        q, length, norm, keys, counts, out, num_tokens, q.stride(0), head_dim**-0.5, num_heads, head_dim,
        triton.next_power_of_2(head_dim), num_keys, triton.next_power_of_2(num_keys), SHORT_ROWS, SHORT_HEADS,
    )  # fmt: skip
    return out


def _cut(width: int) -> tuple[int, int]:
    """Piece size and number of warps for a token of this width."""
    piece, warps = (PIECE, WARPS) if width <= WIDE else (WIDE_PIECE, WIDE_WARPS)
    return min(piece, triton.next_power_of_2(width)), warps


def _rows_like(x: Tensor, like: torch.dtype) -> tuple[Tensor, Tensor | None]:
    out = torch.empty(x.shape, dtype=like, device=x.device)
    scale = torch.empty(len(x), 1, device=x.device) if like.itemsize == 1 else None
    return out, scale


def _block(width: int, like: torch.dtype) -> int:
    """How many channels are rotated together; 0 for none."""
    return rotation_block(width) if like == INT8 else 0


def _largest(like: torch.dtype) -> float:
    return INT8_LARGEST if like == INT8 else torch.finfo(like).max


def _run(
    x: Tensor,
    y: Tensor | None,
    gate: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    eps: float,
    like: torch.dtype,
    plus_one: bool,
) -> tuple[Tensor, Tokens]:
    width = x.shape[-1]
    fresh = x if y is None else torch.empty_like(x)
    out, scales = _rows_like(x, like) if scale is not None else (x, None)
    assert x.is_contiguous()
    piece, warps = _cut(width)
    _norm[(len(x),)](
        x, y, gate, scale, shift, fresh, out, scales, 0 if y is None else y.stride(0), eps, width, piece,
        plus_one, _block(width, like), _largest(like), TINIEST, num_warps=warps,
    )  # fmt: skip
    return fresh, Tokens(out, scales)


@triton.jit
def _norm(  # type: ignore[no-untyped-def]
    x,
    y,
    gate,
    scale,
    shift,
    fresh,
    out,
    out_scale,
    y_row,
    eps,
    WIDTH: tl.constexpr,
    PIECE: tl.constexpr,
    PLUS_ONE: tl.constexpr,
    BLOCK: tl.constexpr,
    LARGEST: tl.constexpr,
    TINY: tl.constexpr,
):
    """One program: one token."""
    token = tl.program_id(0).to(tl.int64)
    dtype: tl.constexpr = x.dtype.element_ty
    COUNT: tl.constexpr = (WIDTH + PIECE - 1) // PIECE
    given = _read(x + token * WIDTH, WIDTH, PIECE)
    if y is not None:
        more = _read(y + token * y_row, WIDTH, PIECE)
        total = ()
        for i in tl.static_range(COUNT):
            channel = i * PIECE + tl.arange(0, PIECE)
            part = more[i].to(tl.float32)
            if gate is not None:
                part *= tl.load(gate + channel, channel < WIDTH, 0.0).to(tl.float32)
            part = (given[i].to(tl.float32) + part).to(dtype)
            tl.store(fresh + token * WIDTH + channel, part, channel < WIDTH)
            total = total + (part,)  # type: ignore[assignment]
        given = total
    if scale is not None:
        mean = tl.sum(_added_up(given, COUNT, 1), 0) / WIDTH
        centred = ()
        square = tl.zeros([PIECE], tl.float32)
        for i in tl.static_range(COUNT):
            v = given[i].to(tl.float32) - mean
            if (i + 1) * PIECE > WIDTH:
                v = tl.where(i * PIECE + tl.arange(0, PIECE) < WIDTH, v, 0.0)
            square += v * v
            centred = centred + (v,)  # type: ignore[assignment]
        length = tl.rsqrt(tl.sum(square, 0) / WIDTH + eps)
        normed = ()
        for i in tl.static_range(COUNT):
            channel = i * PIECE + tl.arange(0, PIECE)
            factor = tl.load(scale + channel, channel < WIDTH, 0.0).to(tl.float32)
            if PLUS_ONE:
                factor += 1.0
            move = tl.load(shift + channel, channel < WIDTH, 0.0).to(tl.float32)
            normed = normed + ((centred[i] * length * factor + move).to(dtype),)  # type: ignore[assignment]
        _store(normed, out, out_scale, token, WIDTH, PIECE, BLOCK, LARGEST, TINY)


@triton.jit
def _activate(  # type: ignore[no-untyped-def]
    x,
    out,
    out_scale,
    x_row,
    WIDTH: tl.constexpr,
    PIECE: tl.constexpr,
    GELU: tl.constexpr,
    BLOCK: tl.constexpr,
    LARGEST: tl.constexpr,
    TINY: tl.constexpr,
):
    """One program: one token."""
    token = tl.program_id(0).to(tl.int64)
    given = _read(x + token * x_row, WIDTH, PIECE)
    if GELU:
        active = ()
        for i in tl.static_range((WIDTH + PIECE - 1) // PIECE):
            v = given[i].to(tl.float32)
            # 0.5 v (1 + tanh(u)) = v sigmoid(2u)
            v = v * tl.sigmoid(v * (1.5957691216057308 + 0.07135481282 * v * v))
            active = active + (v.to(x.dtype.element_ty),)  # type: ignore[assignment]
        given = active
    _store(given, out, out_scale, token, WIDTH, PIECE, BLOCK, LARGEST, TINY)


@triton.jit
def _lengths(x, out, x_row, eps, WIDTH: tl.constexpr, PIECE: tl.constexpr):  # type: ignore[no-untyped-def]
    """One token's RMS norm factor, the reciprocal of its root mean square."""
    token = tl.program_id(0).to(tl.int64)
    given = _read(x + token * x_row, WIDTH, PIECE)
    square = tl.sum(_added_up(given, (WIDTH + PIECE - 1) // PIECE, 2), 0)
    tl.store(out + token, tl.rsqrt(square / WIDTH + eps))


@triton.jit
def _read(source, WIDTH: tl.constexpr, PIECE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Load a token in pieces, with zeros past its end."""
    pieces = ()
    for i in tl.static_range((WIDTH + PIECE - 1) // PIECE):
        channel = i * PIECE + tl.arange(0, PIECE)
        pieces = pieces + (tl.load(source + channel, channel < WIDTH, 0.0),)  # type: ignore[assignment]
    return pieces


@triton.jit
def _added_up(pieces, COUNT: tl.constexpr, POWER: tl.constexpr):  # type: ignore[no-untyped-def]
    """The elementwise sum of pieces, or of their squares."""
    total = pieces[0].to(tl.float32)
    if POWER == 2:
        total *= total
    for i in tl.static_range(1, COUNT):
        v = pieces[i].to(tl.float32)
        total += v * v if POWER == 2 else v
    return total


@triton.jit
def _store(  # type: ignore[no-untyped-def]
    pieces,
    out,
    out_scale,
    token,
    WIDTH: tl.constexpr,
    PIECE: tl.constexpr,
    BLOCK: tl.constexpr,
    LARGEST: tl.constexpr,
    TINY: tl.constexpr,
):
    """Store a token as a row in out's dtype, quantised if that is 8 bits, first rotated unless BLOCK is 0."""
    COUNT: tl.constexpr = (WIDTH + PIECE - 1) // PIECE
    if BLOCK:
        rotated = ()
        for i in tl.static_range(COUNT):
            rotated = rotated + (_hadamard(pieces[i], PIECE, BLOCK),)  # type: ignore[assignment]
        pieces = rotated
    factor = 1.0
    if out_scale is not None:
        highest = tl.abs(pieces[0].to(tl.float32))
        for i in tl.static_range(1, COUNT):
            highest = tl.maximum(highest, tl.abs(pieces[i].to(tl.float32)))
        largest = tl.maximum(tl.max(highest, 0), TINY)
        factor = LARGEST / largest
        tl.store(out_scale + token, largest / LARGEST)
    for i in tl.static_range(COUNT):
        channel = i * PIECE + tl.arange(0, PIECE)
        v = pieces[i].to(tl.float32)
        if out_scale is not None:
            v = v * factor
            if out.dtype.element_ty == tl.int8:
                v = (v + 12582912.0) - 12582912.0  # rounds to nearest, half to even
        tl.store(out + token * WIDTH + channel, v.to(out.dtype.element_ty), channel < WIDTH)


@triton.jit
def _hadamard(v, PIECE: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """See quantize.hadamard. Of a piece a thread holds 8 neighbours, so that a warp holds a block of 256."""
    v = v.to(tl.float32)
    for power in tl.static_range(4):
        if 4**power < BLOCK:
            fours = tl.reshape(v, [PIECE // 4 ** (power + 1), 4, 4**power])
            v = 0.5 * tl.sum(fours, 1, keep_dims=True) - fours
    return tl.reshape(v, [PIECE])


@triton.jit
def _short(  # type: ignore[no-untyped-def]
    q,
    length,
    norm,
    keys,
    counts,
    out,
    num_tokens,
    q_row,
    factor,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_2: tl.constexpr,
    KEYS: tl.constexpr,
    KEYS_2: tl.constexpr,
    ROWS: tl.constexpr,
    SHARE: tl.constexpr,
):
    """One program: ROWS tokens and SHARE heads."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel, key = tl.arange(0, DIM_2), tl.arange(0, KEYS_2)
    there = (row < num_tokens)[:, None] & (channel < DIM)[None, :]
    source = q + row[:, None].to(tl.int64) * q_row + channel[None, :]
    by = tl.load(length + row, row < num_tokens, 0.0)
    count = tl.load(counts + key, key < KEYS, float("-inf"))
    key_there = (key < KEYS)[None, :] & (channel < DIM)[:, None]
    for i in tl.static_range(SHARE):
        head = tl.program_id(1) * SHARE + i
        if head < HEADS:
            given = tl.load(source + head * DIM, there, 0.0)
            weight = tl.load(norm + head * DIM + channel, channel < DIM, 0.0).to(tl.float32)
            v = (given.to(tl.float32) * by[:, None] * weight[None, :]).to(given.dtype)
            place = keys + key[None, :] * (HEADS * DIM) + head * DIM + channel[:, None]
            k = tl.load(place, key_there, 0.0)
            score = tl.dot(v, k, input_precision="ieee") * factor + count[None, :]
            score = tl.exp(score - tl.max(score, 1)[:, None])
            score = score / tl.sum(score, 1)[:, None]
            target = out + row[:, None].to(tl.int64) * (HEADS * KEYS) + head * KEYS + key[None, :]
            tl.store(target, score.to(given.dtype), (row < num_tokens)[:, None] & (key < KEYS)[None, :])
