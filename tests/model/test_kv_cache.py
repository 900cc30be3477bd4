"""Rings against a list that keeps everything."""

from __future__ import annotations

import pytest
import torch

from avatar.geometry import Geometry
from avatar.model.kv_cache import KeysValues, Ring, Window, place, quantise_tokens
from avatar.model.quantize import FLOAT8
from avatar.model.rope import ConditionTable, rotate


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, FLOAT8])
def test_a_ring_takes_the_bytes_that_are_planned_for_it(dtype):
    ring = Ring.allocate(Geometry(704, 384, 12), 40, 128, dtype, "meta")
    values = 2 * 9 * 1056 * 5120
    expected = values * (1 + 4 / 128) if dtype == FLOAT8 else values * dtype.itemsize
    assert sum(tensor.nbytes for tensor in ring.tensors) == expected


@pytest.mark.parametrize("window_frames", [4, 5, 8, 12])
def test_a_ring_in_float8_gives_back_all_but_the_rounding(window_frames):
    """Each token and head has its own scale: tokens a million times apart lose no more than others."""
    torch.manual_seed(0)
    geometry, heads, dim = Geometry(64, 64, window_frames), 3, 128
    exact, rounded = (Ring.allocate(geometry, heads, dim, t, "cpu") for t in (torch.float32, FLOAT8))
    window = Window(geometry, rounded, torch.float32, "cpu")
    for block in range(6):
        size = 10.0 ** torch.randint(-3, 4, (geometry.block_tokens, heads, 1))
        own = KeysValues(*(torch.randn(geometry.block_tokens, heads, dim) * size for _ in "kv"))
        exact.append(own)
        rounded.append(quantise_tokens(own))
        assert rounded.num_written == exact.num_written == 3 * (block + 1)
        num_past = exact.num_valid * geometry.frame_tokens
        found = window.with_past(rounded)
        for values, ring in zip(found, (exact.k, exact.v), strict=True):
            past = ring.flatten(0, 1)[:num_past]
            assert values.shape[0] == geometry.condition_tokens + geometry.block_tokens + num_past
            error = (values[-num_past:] - past).norm(dim=-1) / past.norm(dim=-1)
            assert error.max() < 0.036
            assert error.mean() == pytest.approx(0.0265, rel=0.1)


def test_a_ring_in_float8_keeps_tokens_of_zeros():
    ring = Ring.allocate(Geometry(64, 64, 6), 1, 16, FLOAT8, "cpu")
    own = KeysValues(torch.zeros(48, 1, 16), torch.zeros(48, 1, 16))
    ring.append(quantise_tokens(own))
    window = Window(Geometry(64, 64, 6), ring, torch.bfloat16, "cpu")
    assert not window.with_past(ring).k[-48:].any()


def test_window_is_condition_then_own_then_past():
    torch.manual_seed(0)
    geometry, heads, dim = Geometry(64, 64, 8), 2, 12
    condition, *blocks = (
        KeysValues(torch.randn(n, heads, dim), torch.randn(n, heads, dim))
        for n in [geometry.condition_tokens] + 3 * [geometry.block_tokens]
    )
    table = ConditionTable(geometry, dim, torch.device("cpu")).at(33)
    ring = Ring.allocate(geometry, heads, dim, torch.bfloat16, "cpu")
    window = Window(geometry, ring, torch.float32, "cpu")
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
