"""Products of int8 rows and int8 weights as one kernel for NVIDIA GPUs since sm80.

Sums are exact in int32 whatever the tile, so the choice of a tile changes no bit; scales and bias are applied
before the result is written. The reference is products_8bit.multiply_plainly.
"""

from __future__ import annotations

import functools
import logging
import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.errors import OutOfResources

logger = logging.getLogger(__name__)

GROUP = 8  # tiles of rows that share the tiles of weights while these are in the cache
TRIAL_ROWS, TRIAL_SIDE = 2048, 5120  # of the product that tiles are timed with
TRIALS = 5  # calls that are timed, after one that compiles


class Tile(NamedTuple):
    """One program's part of a product: rows of the input by output channels, `depth` channels at a time.

    stages: of the pipeline that copies operands to shared memory while others are multiplied.
    """

    rows: int
    outputs: int
    depth: int
    num_warps: int
    stages: int


# By the least compute capability, newest first; of those with two, each is timed where they run.
SMALL = Tile(128, 256, 64, 8, 4), Tile(128, 128, 64, 4, 4)  # for 99 KB of shared memory
TILES: tuple[tuple[tuple[int, int], tuple[Tile, ...]], ...] = (
    ((12, 0), SMALL),
    ((9, 0), (Tile(128, 128, 128, 8, 3),)),
    ((8, 6), SMALL),
    ((8, 0), (Tile(128, 128, 128, 8, 3), Tile(128, 256, 64, 8, 4))),
)
ON_CPU = Tile(32, 32, 32, 4, 1)  # for Triton's interpreter


def multiply(
    values: Tensor,
    scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor,
    dtype: torch.dtype,
    tile: Tile | None = None,
) -> Tensor:
    """See products_8bit.multiply_plainly; tile: None for the device's."""
    out = torch.empty(len(values), len(weight), dtype=dtype, device=values.device)
    _launch(values, scale, weight, weight_scale, bias, out, tile or tile_on(values.device))
    return out


def tiles_on(device: torch.device) -> tuple[Tile, ...]:
    """The tiles worth trying on a device; the first is the likeliest."""
    if device.type != "cuda":
        return (ON_CPU,)
    capability = torch.cuda.get_device_capability(device)
    return next(tiles for least, tiles in TILES if capability >= least)


@functools.cache
def tile_on(device: torch.device) -> Tile:
    """The fastest of a device's tiles, timed once where there are several."""
    tiles = tiles_on(device)
    return tiles[0] if len(tiles) == 1 else min(tiles, key=lambda tile: milliseconds(tile, device))


def milliseconds(tile: Tile, device: torch.device) -> float:
    """Time of TRIAL_ROWS rows by a square weight on a CUDA device; infinite for a tile that does not fit."""
    values, weight = (
        torch.ones(count, TRIAL_SIDE, dtype=torch.int8, device=device) for count in (TRIAL_ROWS, TRIAL_SIDE)
    )
    scale, weight_scale = torch.ones(TRIAL_ROWS, 1, device=device), torch.ones(TRIAL_SIDE, device=device)
    bias = weight_scale.to(torch.bfloat16)
    out = torch.empty(TRIAL_ROWS, TRIAL_SIDE, dtype=torch.bfloat16, device=device)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    try:
        _launch(values, scale, weight, weight_scale, bias, out, tile)
    except OutOfResources as error:
        logger.info("%s does not fit %s: %s", tile, torch.cuda.get_device_name(device), error)
        return math.inf
    start.record(torch.cuda.current_stream(device))
    for _ in range(TRIALS):
        _launch(values, scale, weight, weight_scale, bias, out, tile)
    end.record(torch.cuda.current_stream(device))
    end.synchronize()
    return start.elapsed_time(end) / TRIALS


def _launch(
    values: Tensor,
    scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor,
    out: Tensor,
    tile: Tile,
) -> None:
    num_rows, width = values.shape
    outputs = len(weight)
    assert all(tensor.is_contiguous() for tensor in (values, scale, weight, weight_scale, bias))
    num_tiles = triton.cdiv(num_rows, tile.rows) * triton.cdiv(outputs, tile.outputs)
    _multiply[(num_tiles,)](
        values, scale, weight, weight_scale, bias, out, num_rows, width, outputs,
        tile.rows, tile.outputs, tile.depth, GROUP, width % tile.depth == 0,
        num_warps=tile.num_warps, num_stages=tile.stages,
    )  # fmt: skip


@triton.jit(do_not_specialize=["num_rows"])
def _multiply(  # type: ignore[no-untyped-def]
    values,
    scale,
    weight,
    weight_scale,
    bias,
    out,
    num_rows,
    width,
    outputs,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """One program: one tile of the output. WHOLE: the width is a multiple of DEPTH.

    Rows and outputs past the end are others read again, so that loads need no mask, and are not written.
    """
    program = tl.program_id(0)
    row_tiles = tl.cdiv(num_rows, ROWS)
    in_group = GROUP * tl.cdiv(outputs, OUTPUTS)
    first = program // in_group * GROUP
    size = min(row_tiles - first, GROUP)
    place = program % in_group
    row = (first + place % size) * ROWS + tl.arange(0, ROWS)
    output = (place // size) * OUTPUTS + tl.arange(0, OUTPUTS)
    channel = tl.arange(0, DEPTH)
    left = values + (row % num_rows)[:, None].to(tl.int64) * width + channel[None, :]
    right = weight + (output % outputs)[None, :].to(tl.int64) * width + channel[:, None]
    total = tl.zeros([ROWS, OUTPUTS], tl.int32)
    for start in range(0, width, DEPTH):
        if WHOLE:
            a, b = tl.load(left), tl.load(right)
        else:
            there = start + channel < width
            a, b = tl.load(left, there[None, :], 0), tl.load(right, there[:, None], 0)
        total = tl.dot(a, b, total, out_dtype=tl.int32)
        left += DEPTH
        right += DEPTH
    inside, held = row < num_rows, output < outputs
    result = total.to(tl.float32) * tl.load(scale + row, inside, 0.0)[:, None]
    result *= tl.load(weight_scale + output, held, 0.0)[None, :]
    result += tl.load(bias + output, held, 0.0).to(tl.float32)[None, :]
    target = out + row[:, None].to(tl.int64) * outputs + output[None, :]
    tl.store(target, result.to(out.dtype.element_ty), inside[:, None] & held[None, :])
