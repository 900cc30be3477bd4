"""Rings against a list that keeps everything."""

from __future__ import annotations

import pytest
import torch

from avatar.geometry import Geometry
from avatar.models.kv_cache import KeysValues, Ring, Window, place
from avatar.models.rope import ConditionTable, rotate


@pytest.mark.parametrize("window_frames", [4, 5, 6, 8, 12, 17])
def test_a_ring_holds_exactly_the_last_frames(window_frames):
    geometry = Geometry(64, 64, window_frames)
    ring = Ring.allocate(geometry, num_heads=1, head_dim=2, dtype=torch.float32, device="cpu")
    storage, written = ring.k.data_ptr(), []
    for block in range(12):
        frames = [block * 3.0 + i for i in range(3)]
        k = torch.tensor(frames).repeat_interleave(geometry.frame_tokens)[:, None, None].expand(-1, 1, 2)
        ring.append(KeysValues(k, -k))
        written += frames
        held = ring.k[: ring.num_valid, 0, 0, 0].tolist()
        assert sorted(held) == written[-geometry.past_frames :]
        assert torch.equal(ring.k, -ring.v)
    assert ring.k.data_ptr() == storage


def test_window_is_condition_then_own_then_past():
    torch.manual_seed(0)
    geometry, heads, dim = Geometry(64, 64, 8), 2, 12
    condition, *blocks = (
        KeysValues(torch.randn(n, heads, dim), torch.randn(n, heads, dim))
        for n in [geometry.condition_tokens] + 3 * [geometry.block_tokens]
    )
    table = ConditionTable(geometry, dim, torch.device("cpu")).at(33)
    ring = Ring.allocate(geometry, heads, dim, torch.bfloat16, "cpu")
    window = Window(geometry, ring, torch.float32)
    for index, own in enumerate(blocks):
        place(window.condition, condition, table)
        place(window.own, own, None)
        k, v = window.with_past(ring)
        past = slice(0, min(3 * index, geometry.past_frames) * geometry.frame_tokens)
        assert torch.equal(
            k, torch.cat([rotate(condition.k, table), own.k, ring.k.flatten(0, 1)[past].float()])
        )
        assert torch.equal(v, torch.cat([condition.v, own.v, ring.v.flatten(0, 1)[past].float()]))
        ring.append(own)
