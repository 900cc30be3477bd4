"""What lies between two products of a layer, in one pass over each token on a GPU.

PyTorch's compiler makes two passes or three of it, since a token's scale is known only when all of it has
been seen: here a token stays in registers. The slow twins are layer.modulate and its neighbours, and
quantize.quantise_rows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from avatar.model.quantize import TINIEST

SHORT_ROWS, SHORT_PARTS = 16, 4  # tokens of a program of short_weights; programs that share their heads
WARPS, WARPS_WIDE = 8, 32  # of a program that takes a token, up to 8192 wide and beyond


class Tokens(NamedTuple):
    """Tokens N C as a product takes them: in the residual stream's dtype, or in 8 bits with scales N 1."""

    values: Tensor
    scale: Tensor | None


def normed(
    x: Tensor, scale: Tensor, shift: Tensor, eps: float, like: torch.dtype, *, plus_one: bool
) -> Tokens:
    """Layer norm of tokens N C, then scale and shift, C each, as rows of a dtype. plus_one: to the scale."""
    return _run(x, None, None, scale, shift, eps, like, plus_one)[1]


def added(x: Tensor, y: Tensor, gate: Tensor | None) -> Tensor:
    """The residual, N C, with y times a gate, C."""
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
    """Both: the new residual, and its norm."""
    return _run(x, y, gate, scale, shift, eps, like, plus_one)


def quantised(x: Tensor, like: torch.dtype, *, gelu: bool = False) -> Tokens:
    """Tokens N C as rows of a dtype; first through GELU (tanh), if so."""
    out, scale = _rows_like(x, like)
    width = x.shape[-1]
    _activate[(len(x),)](
        x, out, scale, x.stride(0), width, triton.next_power_of_2(width), gelu, _largest(like), TINIEST,
        num_warps=WARPS_WIDE if width > 8192 else WARPS,
    )  # fmt: skip
    return Tokens(out, scale)


def short_weights(q: Tensor, norm: Tensor, eps: float, keys: Tensor, counts: Tensor) -> Tensor:
    """attention.few_keys_weights of queries, N h d, that are RMS-normed first by a weight, C."""
    num_tokens, num_heads, head_dim = q.shape
    num_keys = len(keys)
    out = torch.empty(num_tokens, num_heads * num_keys, dtype=q.dtype, device=q.device)
    _short[(triton.cdiv(num_tokens, SHORT_ROWS), SHORT_PARTS)](
        q, norm, keys, counts, out, num_tokens, q.stride(0), eps, head_dim**-0.5, num_heads, head_dim,
        triton.next_power_of_2(head_dim), num_keys, triton.next_power_of_2(num_keys), SHORT_ROWS, SHORT_PARTS,
    )  # fmt: skip
    return out


def _rows_like(x: Tensor, like: torch.dtype) -> tuple[Tensor, Tensor | None]:
    out = torch.empty(x.shape, dtype=like, device=x.device)
    scale = torch.empty(len(x), 1, device=x.device) if like.itemsize == 1 else None
    return out, scale


def _largest(like: torch.dtype) -> float:
    return 127.0 if like == torch.int8 else torch.finfo(like).max


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
    _norm[(len(x),)](
        x, y, gate, scale, shift, fresh, out, scales, 0 if y is None else y.stride(0), eps, width,
        triton.next_power_of_2(width), plus_one, _largest(like), TINIEST,
        num_warps=WARPS,
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
    BLOCK: tl.constexpr,
    PLUS_ONE: tl.constexpr,
    LARGEST: tl.constexpr,
    TINY: tl.constexpr,
):
    """One token."""
    token, channel = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = channel < WIDTH
    given = tl.load(x + token * WIDTH + channel, inside, 0.0)
    v = given.to(tl.float32)
    if y is not None:
        more = tl.load(y + token * y_row + channel, inside, 0.0).to(tl.float32)
        if gate is not None:
            more *= tl.load(gate + channel, inside, 0.0).to(tl.float32)
        total = (v + more).to(given.dtype)
        tl.store(fresh + token * WIDTH + channel, total, inside)
        v = total.to(tl.float32)
    if scale is not None:
        centred = tl.where(inside, v - tl.sum(v, 0) / WIDTH, 0.0)
        v = centred * tl.rsqrt(tl.sum(centred * centred, 0) / WIDTH + eps)
        factor = tl.load(scale + channel, inside, 0.0).to(tl.float32)
        if PLUS_ONE:
            factor += 1.0
        v = (v * factor + tl.load(shift + channel, inside, 0.0).to(tl.float32)).to(given.dtype)
        _store(v.to(tl.float32), out, out_scale, token, channel, inside, WIDTH, LARGEST, TINY)


@triton.jit
def _activate(  # type: ignore[no-untyped-def]
    x,
    out,
    out_scale,
    x_row,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    GELU: tl.constexpr,
    LARGEST: tl.constexpr,
    TINY: tl.constexpr,
):
    """One token."""
    token, channel = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = channel < WIDTH
    given = tl.load(x + token * x_row + channel, inside, 0.0)
    v = given.to(tl.float32)
    if GELU:
        # 0.5 v (1 + tanh(u)) is v times the sigmoid of 2u.
        v = v * tl.sigmoid(1.5957691216057308 * (v + 0.044715 * v * v * v))
        v = v.to(given.dtype).to(tl.float32)
    _store(v, out, out_scale, token, channel, inside, WIDTH, LARGEST, TINY)


@triton.jit
def _store(  # type: ignore[no-untyped-def]
    v, out, out_scale, token, channel, inside, WIDTH: tl.constexpr, LARGEST: tl.constexpr, TINY: tl.constexpr
):
    """A token as a row of the dtype that out has."""
    if out_scale is not None:
        largest = tl.maximum(tl.max(tl.abs(v), 0), TINY)
        v = v * (LARGEST / largest)
        tl.store(out_scale + token, largest / LARGEST)
        if out.dtype.element_ty == tl.int8:
            v = (v + 12582912.0) - 12582912.0  # to the nearest whole number, halves to the even one
    tl.store(out + token * WIDTH + channel, v.to(out.dtype.element_ty), inside)


@triton.jit
def _short(  # type: ignore[no-untyped-def]
    q,
    norm,
    keys,
    counts,
    out,
    num_tokens,
    q_row,
    eps,
    factor,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_2: tl.constexpr,
    KEYS: tl.constexpr,
    KEYS_2: tl.constexpr,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Some tokens: all heads for the norm, then some of them for the weights."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel, key = tl.arange(0, DIM_2), tl.arange(0, KEYS_2)
    there = (row < num_tokens)[:, None] & (channel < DIM)[None, :]
    source = q + row[:, None].to(tl.int64) * q_row + channel[None, :]
    square = tl.zeros([ROWS], tl.float32)
    for head in range(HEADS):
        v = tl.load(source + head * DIM, there, 0.0).to(tl.float32)
        square += tl.sum(v * v, 1)
    length = tl.rsqrt(square / (HEADS * DIM) + eps)
    count = tl.load(counts + key, key < KEYS, float("-inf"))
    key_there = (key < KEYS)[None, :] & (channel < DIM)[:, None]
    share: tl.constexpr = (HEADS + PARTS - 1) // PARTS
    first = tl.program_id(1) * share
    for head in range(first, tl.minimum(first + share, HEADS)):
        given = tl.load(source + head * DIM, there, 0.0)
        weight = tl.load(norm + head * DIM + channel, channel < DIM, 0.0).to(tl.float32)
        v = (given.to(tl.float32) * length[:, None] * weight[None, :]).to(given.dtype)
        k = tl.load(keys + key[None, :] * (HEADS * DIM) + head * DIM + channel[:, None], key_there, 0.0)
        score = tl.dot(v, k, input_precision="ieee") * factor + count[None, :]
        score = tl.exp(score - tl.max(score, 1)[:, None])
        score = score / tl.sum(score, 1)[:, None]
        target = out + row[:, None].to(tl.int64) * (HEADS * KEYS) + head * KEYS + key[None, :]
        tl.store(target, score.to(given.dtype), (row < num_tokens)[:, None] & (key < KEYS)[None, :])
