"""What the bench says of fp8, on a toy model."""

from __future__ import annotations

import pytest
import torch

from avatar.geometry import Geometry
from avatar.model.weights.tiny import CONFIG
from benchmarks.float8 import PARTS, linear_speeds, velocity_errors

GEOMETRY = Geometry(128, 64, 12)
CPU = torch.device("cpu")


def test_errors_of_the_parts_add_up():
    figures = velocity_errors(CONFIG, GEOMETRY, CPU)
    whole = figures["fp8"]["first"]
    assert 2**-9 < figures["weights"]["first"] < whole < 0.1
    assert figures["bf16"]["first"] < whole
    parts = [figures["parts"][part]["first"] for part in PARTS]
    assert sum(error**2 for error in parts) ** 0.5 == pytest.approx(whole, rel=0.3)
    assert all(e["first"] <= e["largest"] for e in (figures["fp8"], figures["weights"], figures["bf16"]))


def test_speeds_name_each_layer(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("benchmarks.float8.MEASURE_S", 1e-3)
    monkeypatch.setattr(torch, "compile", lambda layer, **options: layer)  # on a CPU it is slow to build
    figures = linear_speeds(CONFIG, GEOMETRY, CPU)
    assert [row["layer"] for row in figures] == ["qkv", "o", "ffn.0", "ffn.2"]
    for row in figures:
        assert row["tokens"] == 3 * GEOMETRY.frame_tokens
        assert row["product"] == "plain"
        assert row["product_error"] < 2**-8
        assert row["fp8_tflops"] > 0
