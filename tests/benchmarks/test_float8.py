"""What the bench says of fp8 and int8, on a toy model."""

from __future__ import annotations

import pytest
import torch

from avatar.geometry import Geometry
from avatar.model.weights.tiny import CONFIG
from benchmarks.float8 import PARTS, linear_speeds, velocity_errors

GEOMETRY = Geometry(128, 64, 12)
CPU = torch.device("cpu")


@pytest.mark.parametrize(("weight_dtype", "most", "apart"), [("fp8", 0.1, 0.3), ("int8", 0.03, 1.0)])
def test_errors_of_the_parts_add_up(weight_dtype, most, apart):
    """Each part's has bf16's own in it, which beside int8's is not small."""
    figures = velocity_errors(CONFIG, GEOMETRY, CPU, weight_dtype)
    whole = figures[weight_dtype]["first"]
    assert 2**-9 < figures["weights"]["first"] < whole < most
    assert figures["bf16"]["first"] < whole
    parts = [figures["parts"][part]["first"] for part in PARTS]
    assert sum(error**2 for error in parts) ** 0.5 == pytest.approx(whole, rel=apart)
    named = (figures[name] for name in (weight_dtype, "weights", "bf16"))
    assert all(each["first"] <= each["largest"] for each in named)


@pytest.mark.parametrize("weight_dtype", ["fp8", "int8"])
def test_speeds_name_each_layer(monkeypatch: pytest.MonkeyPatch, weight_dtype: str):
    monkeypatch.setattr("benchmarks.float8.MEASURE_S", 1e-3)
    monkeypatch.setattr(torch, "compile", lambda layer, **options: layer)  # on a CPU it is slow to build
    figures = linear_speeds(CONFIG, GEOMETRY, CPU, weight_dtype)
    assert [row["layer"] for row in figures] == ["qkv", "o", "ffn.0", "ffn.2"]
    for row in figures:
        assert row["tokens"] == 3 * GEOMETRY.frame_tokens
        assert row["product"] == "plain"
        assert row["product_error"] < 2**-8
        assert row[f"{weight_dtype}_tflops"] > 0
