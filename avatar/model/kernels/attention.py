"""Attention in 8 bits as one kernel for NVIDIA GPUs since sm89; the reference is attention_8bit.attend.

Its cost is nearly balanced between tensor cores (two products), exponentials (16 per clock and
multiprocessor) and other instructions, so every instruction counts. Two savings per score are easily
overlooked: an int32 sum that starts at the bits of 12582912.0 reads as 12582912.0 plus the sum in float32, so
no conversion is needed; and the weights leave the first product in the order that the second one needs (see
attention_8bit.PERMUTED).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from avatar.model.attention_8bit import (
    KEY_TILE,
    WEIGHT_EXPONENT,
    Calibration,
    EightBit,
    Queries,
    whole_slots,
)

QUERY_TILE = 64
NUM_WARPS, NUM_STAGES = 4, 3
HOPPER = (9, 0)  # from here on, tiles are copied with tensor descriptors


def attend(q: Queries, parts: Sequence[EightBit], calibration: Calibration, dtype: torch.dtype) -> Tensor:
    """See attention_8bit.attend; takes one or two parts."""
    num_queries, num_heads, head_dim = q.values.shape
    out = torch.empty(q.values.shape, dtype=dtype, device=q.values.device)
    near, past = parts[0], parts[-1]
    by_descriptor = _copies_by_descriptor(q.values.device)
    _attend[(triton.cdiv(num_queries, QUERY_TILE), num_heads)](
        q.values,
        q.scale,
        *_arguments(near, by_descriptor),
        *_arguments(past, by_descriptor),
        len(past.k) if len(parts) > 1 else 0,
        calibration.key_scale,
        calibration.value_scale,
        calibration.value_mean,
        out,
        num_queries,
        head_dim**-0.5 / math.log(2),
        num_heads,
        head_dim,
        QUERY_TILE,
        KEY_TILE,
        WEIGHT_EXPONENT,
        by_descriptor,
        q.values.is_cuda,
        num_warps=NUM_WARPS,
        num_stages=NUM_STAGES,
    )
    return out


def _copies_by_descriptor(device: torch.device) -> bool:
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= HOPPER


def _arguments(part: EightBit, by_descriptor: bool) -> tuple[Any, ...]:
    """The kernel's arguments for one part: keys, values, number of keys, row stride of values."""
    num_keys, num_heads, head_dim = part.k.shape
    width, row = num_heads * head_dim, part.v.stride(1)
    keys, values = part
    if by_descriptor:
        keys = TensorDescriptor(part.k, [num_keys, width], [width, 1], [KEY_TILE, head_dim])
        values = TensorDescriptor(part.v, [width, whole_slots(num_keys)], [row, 1], [head_dim, KEY_TILE])
    return keys, values, num_keys, row


@triton.jit
def _attend(  # type: ignore[no-untyped-def]
    queries,
    query_scales,
    near_keys,
    near_values,
    num_near,
    near_row,
    past_keys,
    past_values,
    past_held,
    past_row,
    num_past,
    key_scales,
    value_scales,
    value_means,
    out,
    num_queries,
    factor,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    EXPONENT: tl.constexpr,
    BY_DESCRIPTOR: tl.constexpr,
    ON_GPU: tl.constexpr,
):
    """One program: ROWS queries of one head."""
    head = tl.program_id(1)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, DIM)
    place = row[:, None] * (HEADS * DIM) + head * DIM + channel[None, :]
    inside = row < num_queries
    q = tl.load(queries + place, inside[:, None], 0)
    scale = tl.load(query_scales + row * HEADS + head, inside, 1.0) * (tl.load(key_scales + head) * factor)
    state = (
        tl.zeros([ROWS, DIM], tl.float32),
        tl.zeros([ROWS, 4], tl.float32),
        tl.full([ROWS], -1e30, tl.float32),
    )
    state = _part(
        state, q, scale, near_keys, near_values, num_near, near_row, head,
        HEADS, DIM, ROWS, KEYS, EXPONENT, BY_DESCRIPTOR, ON_GPU,
    )  # fmt: skip
    total, weights, _ = _part(
        state, q, scale, past_keys, past_values, num_past, past_row, head,
        HEADS, DIM, ROWS, KEYS, EXPONENT, BY_DESCRIPTOR, ON_GPU,
    )  # fmt: skip
    result = total / tl.sum(weights, 1)[:, None] * tl.load(value_scales + head)
    result += tl.load(value_means + head * DIM + channel)[None, :]
    tl.store(out + place, result.to(out.dtype.element_ty), inside[:, None])


@triton.jit
def _part(  # type: ignore[no-untyped-def]
    state,
    q,
    scale,
    keys,
    values,
    num_keys,
    value_row,
    head,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    EXPONENT: tl.constexpr,
    BY_DESCRIPTOR: tl.constexpr,
    ON_GPU: tl.constexpr,
):
    """The state after more keys: the sums of weighted values and of weights, and the largest score so far.

    Weights are summed by four threads of a row, each for itself. Only the last tile may be partly filled.
    """
    whole = num_keys // KEYS * KEYS
    for start in range(0, whole, KEYS):
        state = _tile(
            state, q, scale, keys, values, start, num_keys, value_row, head,
            HEADS, DIM, ROWS, KEYS, EXPONENT, BY_DESCRIPTOR, ON_GPU, False,
        )  # fmt: skip
    if whole < num_keys:
        state = _tile(
            state, q, scale, keys, values, whole, num_keys, value_row, head,
            HEADS, DIM, ROWS, KEYS, EXPONENT, BY_DESCRIPTOR, ON_GPU, True,
        )  # fmt: skip
    return state


@triton.jit
def _tile(  # type: ignore[no-untyped-def]
    state,
    q,
    scale,
    keys,
    values,
    start,
    num_keys,
    value_row,
    head,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    EXPONENT: tl.constexpr,
    BY_DESCRIPTOR: tl.constexpr,
    ON_GPU: tl.constexpr,
    PARTLY: tl.constexpr,
):
    """See _part; KEYS keys. Partly filled: positions past the last key get no weight; values are finite."""
    total, weights, top = state
    channel = tl.arange(0, DIM)
    key = start + tl.arange(0, KEYS)
    if BY_DESCRIPTOR:
        k = keys.load([start, head * DIM]).T
    else:
        place = key[None, :].to(tl.int64) * (HEADS * DIM) + head * DIM + channel[:, None]
        k = tl.load(keys + place, (key < num_keys)[None, :], 0)
    bits = tl.dot(q, k, tl.full([ROWS, KEYS], 0x4B400000, tl.int32), out_dtype=tl.int32)
    score = bits.to(tl.float32, bitcast=True)
    if PARTLY:
        score = tl.where((key < num_keys)[None, :], score, -1e30)
    new_top = tl.maximum(top, tl.max(score, 1))
    weight = _exp2(score * scale[:, None] - (new_top * scale - EXPONENT)[:, None], ON_GPU)
    kept = _exp2((top - new_top) * scale, ON_GPU)
    weights = weights * kept[:, None] + tl.sum(tl.sum(tl.reshape(weight, [ROWS, KEYS // 8, 4, 2]), 3), 1)
    weight = tl.reshape(weight.to(tl.float8e4nv), [ROWS, KEYS // 16, 2, 4, 2])
    weight = tl.reshape(tl.permute(weight, (0, 1, 3, 2, 4)), [ROWS, KEYS])
    if BY_DESCRIPTOR:
        v = values.load([head * DIM, start]).T
    else:
        place = (head * DIM + channel)[None, :].to(tl.int64) * value_row + key[:, None]
        v = tl.load(values + place, (key < (num_keys + 15) // 16 * 16)[:, None], 0.0)
    total = tl.dot(weight, v, total * kept[:, None])
    return total, weights, new_top


@triton.jit
def _exp2(x, ON_GPU: tl.constexpr):  # type: ignore[no-untyped-def]
    """2 to the power of x, in one instruction on a GPU; Triton's exp2 takes four, to handle subnormals."""
    if ON_GPU:
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return tl.exp2(x)
