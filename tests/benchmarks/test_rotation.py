"""What the bench of rotation says, at a smaller size."""

from __future__ import annotations

import pytest
import torch

from benchmarks.rotation import errors, inputs

WIDTH = 1024
CASES = inputs(64, WIDTH)


@pytest.mark.parametrize("case", CASES)
def test_rotated_int8_loses_least_whatever_the_inputs(case: str):
    weight = torch.randn(128, WIDTH, generator=torch.Generator().manual_seed(1)) * WIDTH**-0.5
    found = errors(CASES[case], weight)
    assert 0.008 < found["int8"] < 0.02
    assert found["int8"] < 0.6 * found["fp8"]
    assert found["int8"] <= found["int8, not rotated"] * 1.02


def test_channels_far_larger_than_others_are_what_rotation_is_for():
    weight = torch.randn(128, WIDTH, generator=torch.Generator().manual_seed(1)) * WIDTH**-0.5
    found = errors(CASES["normal, 8 channels 50 times as large"], weight)
    assert found["int8, not rotated"] > 4 * found["int8"]
