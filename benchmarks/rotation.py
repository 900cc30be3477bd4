"""What rotating is worth to int8: `python -m benchmarks.rotation` prints the error of products, on a CPU.

Rows with some channels that are far larger than the others, as a trained model's activations have them, by
normal weights: fp8, int8 as it is, and int8 with both sides rotated. Errors are norms of differences over
norms.
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from torch import Tensor

from avatar.model.linear_8bit import LINEARS
from avatar.model.products_8bit import multiply_plainly
from avatar.model.quantize import FLOAT8, INT8, quantise_rows, quantise_weight

ROWS, WIDTH, OUTPUTS = 256, 5120, 512


def inputs(num_rows: int = ROWS, width: int = WIDTH) -> dict[str, Tensor]:
    """Rows by a description."""
    draw = torch.Generator().manual_seed(0)
    normal = torch.randn(num_rows, width, generator=draw)
    found = {"normal": normal}
    for count, factor in ((8, 10.0), (8, 50.0), (4, 100.0)):
        large = normal.clone()
        large[:, torch.randperm(width, generator=draw)[:count]] *= factor
        found[f"normal, {count} channels {factor:.0f} times as large"] = large
    shifted = normal.clone()
    shifted[:, torch.randperm(width, generator=draw)[:8]] += 30
    found["normal, 8 channels around 30"] = shifted
    found["GELU of normal"] = F.gelu(normal, approximate="tanh")
    return found


def errors(x: Tensor, weight: Tensor) -> dict[str, float]:
    """The error of a product in each format."""
    exact, bias = x @ weight.t(), torch.zeros(len(weight))

    def apart(found: Tensor) -> float:
        return float((found - exact).norm() / exact.norm())

    values, scale = quantise_rows(x, INT8)
    weights, scales = quantise_rows(weight, INT8)
    linears = {format: LINEARS[format](*quantise_weight(weight, format), bias) for format in (FLOAT8, INT8)}
    return {
        "fp8": apart(linears[FLOAT8](x)),
        "int8, not rotated": apart(multiply_plainly(values, scale, weights, scales[:, 0], bias)),
        "int8": apart(linears[INT8](x)),
    }


def main() -> None:
    """Print a table."""
    weight = torch.randn(OUTPUTS, WIDTH, generator=torch.Generator().manual_seed(1)) * WIDTH**-0.5
    rows = {name: errors(x, weight) for name, x in inputs().items()}
    names = list(next(iter(rows.values())))
    lines = [f"| inputs | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    for what, row in rows.items():
        lines.append(f"| {what} | {' | '.join(f'{100 * row[name]:.1f} %' for name in names)} |")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
