"""Rotary tables against complex arithmetic in float64."""

from __future__ import annotations

import pytest
import torch

from avatar.geometry import Geometry
from avatar.model.rope import (
    ConditionTable,
    axis_channels,
    block_table,
    motion_table,
    reference_time,
    rotate,
)

CPU = torch.device("cpu")
GEOMETRY = Geometry(128, 64, 12)
HEAD_DIM = 32


def turns(table: torch.Tensor) -> torch.Tensor:
    """The table's complex factors, one for each pair: N d/2."""
    cos, sin = table.double().unbind(-2)
    assert torch.equal(cos[:, ::2], cos[:, 1::2])
    assert torch.equal(sin[:, ::2], -sin[:, 1::2])
    return torch.complex(cos[:, 1::2].contiguous(), sin[:, 1::2].contiguous())


def complex_table(positions: list[tuple[int, int, int]]) -> torch.Tensor:
    angles = [
        torch.outer(
            torch.tensor([p[axis] for p in positions], dtype=torch.float64),
            10000.0 ** -(torch.arange(0, channels, 2, dtype=torch.float64) / channels),
        )
        for axis, channels in enumerate(axis_channels(HEAD_DIM))
    ]
    return torch.polar(torch.ones(1, dtype=torch.float64), torch.cat(angles, dim=1))


def test_head_channels_are_split_as_published():
    assert axis_channels(128) == (44, 42, 42)


@pytest.mark.parametrize("first", [0, 7, 45_000, 1_000_000])
def test_block_positions_stay_exact_far_into_a_video(first):
    expected = complex_table([(first + t, y, x) for t in range(3) for y in range(4) for x in range(8)])
    error = (turns(block_table(GEOMETRY, first, HEAD_DIM, CPU)) - expected).abs().max()
    assert error < 1e-7


def test_rotation_is_a_complex_product_of_interleaved_pairs():
    torch.manual_seed(0)
    x, table = torch.randn(96, 2, HEAD_DIM), block_table(GEOMETRY, 5, HEAD_DIM, CPU)
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)))
    expected = torch.view_as_real(pairs * turns(table)[:, None]).flatten(-2)
    torch.testing.assert_close(rotate(x, table), expected.float())
    assert rotate(x.bfloat16(), table).dtype == torch.bfloat16


def test_packed_motion_frames_stand_at_negative_times():
    nearest = [(-1, y, x) for y in range(4) for x in range(8)]
    middle = [(-3, y, x) for y in (0, 3) for x in (0, 2, 4, 7)]
    far = [(-t, 0, x) for t in (19, 14, 9, 4) for x in (0, 7)]
    error = (turns(motion_table(GEOMETRY, HEAD_DIM, CPU)) - complex_table(nearest + middle + far)).abs().max()
    assert error < 1e-7


def test_only_the_reference_moves():
    table = ConditionTable(GEOMETRY, HEAD_DIM, CPU)
    near, far = table.at(30), table.at(44)
    tokens = GEOMETRY.frame_tokens
    assert len(near) == GEOMETRY.condition_tokens
    assert torch.equal(near[tokens:], far[tokens:])
    expected = complex_table([(44, y, x) for y in range(4) for x in range(8)])
    assert (turns(far[:tokens]) - expected).abs().max() < 1e-7


def test_reference_time_keeps_its_distance():
    assert reference_time(first_frame=0, distance=30) == 30
    assert reference_time(first_frame=24, distance=4) == 30  # 24 + 4 has not reached 30
    assert reference_time(first_frame=27, distance=4) == 31
    assert reference_time(first_frame=300, distance=12) == 312
