"""Time our own layer kernels on a GPU, in µs: `python -m benchmarks.between_products`, one line per kernel.

Uses the real model's widths, 704*384, weights in fp8 (or `--weight_dtype int8`) and 8-bit attention. Each
kernel is timed in a CUDA graph of REPEATS calls, without host time, on alternating inputs that together do
not fit the cache.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from avatar.checkpoints.transformer_config import ModelConfig
from avatar.geometry import Geometry, Size
from avatar.model.attention_8bit import Calibration, EightBitRing, EightBitWindow
from avatar.model.kernels import elementwise
from avatar.model.kernels import qkv as qkv_kernels
from avatar.model.kv_cache import KeysValues
from avatar.model.quantize import FLOAT8
from avatar.pipeline.device import QUANTISED

REPEATS, REPLAYS, NUM_INPUTS = 20, 5, 3
EPS = 1e-6
TEXT_ROWS = (24, 32)


def microseconds(call: Callable[[int], object]) -> float:
    """Time of one call; call takes the index of its input."""
    for index in range(NUM_INPUTS):
        call(index)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for index in range(REPEATS):
            call(index % NUM_INPUTS)
    graph.replay()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(REPLAYS):
        graph.replay()
    end.record()
    torch.cuda.synchronize()
    return 1000 * start.elapsed_time(end) / (REPEATS * REPLAYS)


def calls(
    config: ModelConfig, geometry: Geometry, device: torch.device, format: torch.dtype = FLOAT8
) -> dict[str, Callable[[int], object]]:
    """Every kernel by name, on random inputs. format: what inputs of products are quantised to."""
    num_tokens, width = geometry.block_tokens, config.dim
    num_heads, dim = config.num_heads, config.head_dim

    def normal(*shape: int) -> list[Tensor]:
        return [torch.randn(*shape, device=device, dtype=torch.bfloat16) for _ in range(NUM_INPUTS)]

    x, y, hidden = normal(num_tokens, width), normal(num_tokens, width), normal(num_tokens, config.ffn_dim)
    projected = [t.unflatten(-1, (3, num_heads, dim)).unbind(1) for t in normal(num_tokens, 3 * width)]
    vector, norm = torch.randn(width, device=device), normal(width)[0]
    table = torch.randn(num_tokens, 2, dim, device=device)
    mean, scale = torch.randn(num_heads, dim, device=device), torch.rand(num_heads, device=device) + 0.1
    calibration = Calibration(mean, scale, mean, scale)
    window = EightBitWindow(geometry, num_heads, dim, device)
    ring = EightBitRing.empty(geometry, num_heads, dim, device)
    k, v = (normal(geometry.condition_tokens, num_heads, dim) for _ in "kv")
    condition = [KeysValues(*pair) for pair in zip(k, v, strict=True)]
    own = [KeysValues(each[1], each[2]) for each in projected]
    turn, of_condition = table, table[: geometry.condition_tokens]
    found: dict[str, Callable[[int], object]] = {
        "norm": lambda i: elementwise.normed(x[i], vector, vector, EPS, format, plus_one=True),
        "residual and norm": lambda i: elementwise.added_and_normed(
            x[i], y[i], vector, norm, norm, EPS, format, plus_one=False
        ),
        "residual": lambda i: elementwise.added(x[i], y[i], vector),
        "quantise": lambda i: elementwise.quantised(x[i], format),
        "GELU and quantise": lambda i: elementwise.quantised(hidden[i], format, gelu=True),
        "queries": lambda i: qkv_kernels.quantise_queries(projected[i][0], norm, turn, EPS),
        "keys and values": lambda i: qkv_kernels.write(window.own, own[i], calibration, turn, norm, EPS),
        "condition": lambda i: qkv_kernels.write(window.condition, condition[i], calibration, of_condition),
        "ring": lambda i: ring.append(window.own),
    }
    for count in TEXT_ROWS:
        keys, counts = normal(count, num_heads, dim)[0], torch.zeros(count, device=device)
        weights, outputs = normal(num_tokens, num_heads * count), normal(num_heads * count, width)[0]
        found[f"short prompt, {count} rows"] = lambda i, keys=keys, counts=counts: elementwise.short_weights(  # type: ignore[misc]
            x[i].unflatten(-1, (num_heads, dim)), norm, EPS, keys, counts
        )
        found[f"its product, {count} rows"] = lambda i, weights=weights, outputs=outputs: torch.addmm(  # type: ignore[misc]
            norm, weights[i], outputs
        )
    return found


def main() -> None:
    """Print every kernel's time."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--weight_dtype", choices=QUANTISED, default="fp8")
    format, geometry = QUANTISED[parser.parse_args().weight_dtype], Geometry.of(Size.parse("704*384"), 48)
    for name, call in calls(ModelConfig(), geometry, torch.device("cuda"), format).items():
        sys.stdout.write(f"{name:24s} {microseconds(call):8.1f}\n")


if __name__ == "__main__":
    main()
