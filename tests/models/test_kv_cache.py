"""Rings against a list that keeps everything."""

from __future__ import annotations

import pytest
import torch

from avatar.geometry import Geometry
from avatar.models.kv_cache import KeysValues, Ring, window
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
    geometry, heads, dim = Geometry(64, 64, 5), 2, 12
    tokens = [geometry.condition_tokens, geometry.block_tokens]
    condition, own = (KeysValues(torch.randn(n, heads, dim), torch.randn(n, heads, dim)) for n in tokens)
    past = KeysValues(
        *(torch.randn(2, geometry.frame_tokens, heads, dim, dtype=torch.bfloat16) for _ in "kv")
    )
    table = ConditionTable(geometry, dim, torch.device("cpu")).at(33)
    k, v = window(own, condition, table, past)
    assert torch.equal(k, torch.cat([rotate(condition.k, table), own.k, past.k.flatten(0, 1).float()]))
    assert torch.equal(v, torch.cat([condition.v, own.v, past.v.flatten(0, 1).float()]))
