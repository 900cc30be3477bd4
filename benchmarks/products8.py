"""Time 8-bit products at the model's sizes on a GPU: `python -m benchmarks.products8` writes JSON.

For each large linear layer: bf16, fp8 by torch._scaled_mm, int8 by torch._int_mm (sums alone), and int8 by
our own kernel with each of TILES. "error" is the kernel's, against exact sums. Each is timed in a CUDA graph,
as benchmarks.between_products does it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from avatar.bench.measure import machine
from avatar.checkpoints.transformer_config import ModelConfig
from avatar.geometry import Geometry, Size
from avatar.model.kernels import products
from avatar.model.kernels.products import OutOfResources, Tile
from avatar.model.products_8bit import multiply_float8, multiply_plainly, product_on
from avatar.model.quantize import FLOAT8, INT8, quantise_rows, quantise_weight
from benchmarks.between_products import NUM_INPUTS, microseconds

TILES = (
    Tile(128, 256, 128, 8, 3),
    Tile(128, 256, 128, 8, 4),
    Tile(256, 128, 128, 8, 3),
    Tile(128, 128, 128, 8, 3),
    Tile(128, 128, 128, 4, 3),
    Tile(128, 256, 64, 8, 3),
    Tile(128, 256, 64, 8, 4),
    Tile(128, 128, 64, 4, 4),
)
CHECKED_ROWS = 256


def layers(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """The large linear layers: input and output channels by name."""
    dim, ffn_dim = config.dim, config.ffn_dim
    return {"qkv": (dim, 3 * dim), "o": (dim, dim), "ffn.0": (dim, ffn_dim), "ffn.2": (ffn_dim, dim)}


def speeds(
    num_rows: int, width: int, outputs: int, device: torch.device, tiles: tuple[Tile, ...] = TILES
) -> dict[str, Any]:
    """Times and rates of one layer's products by name."""
    operations = 2 * num_rows * width * outputs
    draw = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, generator=draw)

    weight, bias = (normal(outputs, width) * width**-0.5).bfloat16(), normal(outputs).bfloat16()
    rows = [normal(num_rows, width).bfloat16() for _ in range(NUM_INPUTS)]

    def timed(call: Callable[[int], object]) -> dict[str, float]:
        ms = microseconds(call) / 1000
        return {"ms": ms, "tops": operations / ms / 1e9}

    found: dict[str, Any] = {"rows": num_rows, "in": width, "out": outputs}
    found["bf16"] = timed(lambda i: torch.nn.functional.linear(rows[i], weight, bias))
    if product_on(device, FLOAT8) == "scaled":
        given, weights = [quantise_rows(x) for x in rows], quantise_weight(weight)
        found["fp8"] = timed(lambda i: multiply_float8(*given[i], *weights, bias))
    given, weights = [quantise_rows(x, INT8) for x in rows], quantise_weight(weight, INT8)
    found["int_mm"] = timed(lambda i: torch._int_mm(given[i][0], weights[0].t()))
    values, scale = (part[:CHECKED_ROWS] for part in given[0])
    exact = multiply_plainly(values.double(), scale.double(), *(w.double() for w in weights), bias.double())  # type: ignore[call-arg]
    found["int8"] = {}
    for tile in tiles:
        name = "x".join(map(str, tile[:3])) + f", {tile.num_warps} warps, {tile.stages} stages"

        def call(i: int, tile: Tile = tile) -> Tensor:
            return products.multiply(*given[i], *weights, bias, torch.bfloat16, tile)

        try:
            error = (call(0)[:CHECKED_ROWS].double() - exact).norm() / exact.norm()
        except OutOfResources as reason:
            found["int8"][name] = {"does_not_fit": str(reason)}
            continue
        found["int8"][name] = timed(call) | {"error": float(error)}
    fit = {name: row for name, row in found["int8"].items() if "ms" in row}
    best = min(fit, key=lambda name: fit[name]["ms"])
    found["int8_best"] = {"tile": best, **fit[best]}
    return found


def main() -> None:
    """Write the speeds of every layer as JSON to standard output."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--size", default="704*384", metavar="W*H")
    args = parser.parse_args()
    device = torch.device("cuda", 0)
    num_rows = Geometry.of(Size.parse(args.size), 48).block_tokens
    torch.ones(1, device=device)
    start = time.perf_counter()
    tile = products.tile_on(device)
    chosen = {"tile": tile._asdict(), "chosen_in_s": time.perf_counter() - start}
    figures = {
        "chosen": chosen,
        "layers": {
            name: speeds(num_rows, *sides, device) for name, sides in layers(ModelConfig()).items()
        },
        "machine": machine(device),
    }
    json.dump(figures, sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
