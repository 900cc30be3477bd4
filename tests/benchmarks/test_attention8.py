"""What the bench says of attention in 8 bits, on a toy model."""

from __future__ import annotations

import torch

from avatar.geometry import Geometry
from avatar.model.weights.tiny import CONFIG
from benchmarks.attention8 import Trial, drift, velocity_errors

TRIAL = Trial(CONFIG, Geometry(64, 64, 8), torch.device("cpu"))


def test_attention_in_8_bits_adds_less_than_a_point():
    figures = velocity_errors(TRIAL)
    for rings in ("empty_rings", "full_rings"):
        mean = {name: figure[rings]["mean"] for name, figure in figures.items()}
        assert 0 < mean["bf16"] < mean["bf16, attention int8"] < mean["bf16"] + 0.01
        assert abs(mean["fp8, attention int8"] - mean["fp8"]) < 0.01


def test_latents_drift_no_further_than_by_fp8_weights():
    curves = drift(TRIAL, 8)
    assert {len(curve) for curve in curves.values()} == {8}
    assert 0 < max(curves["bf16, attention int8"]) < max(curves["fp8"])
