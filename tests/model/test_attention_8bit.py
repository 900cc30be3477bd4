"""Attention in 8 bits in plain PyTorch: against the formula; its rings against a list that keeps all."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from avatar.geometry import Geometry
from avatar.model.attention_8bit import (
    PERMUTED,
    SLOT_TOKENS,
    Calibration,
    EightBitRing,
    EightBitWindow,
    attend,
    quantise_heads,
    write,
)
from avatar.model.kv_cache import KeysValues
from avatar.model.quantize import FLOAT8

GEOMETRY = Geometry(64, 64, 8)  # 48 tokens of its own, and 40 of the condition: half a slot at the end
HEADS, DIM = 2, 32


def tokens(count: int) -> KeysValues:
    return KeysValues(*(torch.randn(count, HEADS, DIM) for _ in "kv"))


def unit(scale: float = 1.0) -> Calibration:
    """No mean, and one scale for all."""
    mean, scales = torch.zeros(HEADS, DIM), torch.full((HEADS,), scale)
    return Calibration(mean, scales, mean, scales)


def formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("nhd,mhd->hnm", q.double(), k.double()) * q.shape[-1] ** -0.5
    return torch.einsum("hnm,mhd->nhd", scores.softmax(-1), v.double())


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def written(window: EightBitWindow, own: KeysValues, condition: KeysValues, calibration: Calibration) -> None:
    write(window.own, own, calibration)
    write(window.condition, condition, calibration)


@pytest.mark.parametrize("bias", [0.0, 10.0])
def test_it_is_attention_but_for_the_rounding(bias):
    """Weights and values in e4m3 cost 2.65 % each, of what is not common; what is common costs nothing."""
    torch.manual_seed(0)
    own, condition = tokens(48), tokens(40)
    common = bias * torch.randn(2, HEADS, DIM)
    own, condition = (KeysValues(k + common[0], v + common[1]) for k, v in (own, condition))
    q, window = torch.randn(70, HEADS, DIM), EightBitWindow(GEOMETRY, HEADS, DIM, "cpu")
    calibration = Calibration.of(own, condition)
    written(window, own, condition, calibration)
    found = attend(quantise_heads(q), [window.near], calibration, torch.float32)
    expected = formula(q, torch.cat([own.k, condition.k]), torch.cat([own.v, condition.v]))
    assert 0.01 < relative(found - common[1], expected - common[1]) < 0.045


def test_tokens_of_two_parts_count_alike():
    """Two parts are the one part that has both."""
    torch.manual_seed(0)
    own, condition = tokens(48), tokens(48)
    calibration = Calibration.of(own, condition)
    q, written_keys = quantise_heads(torch.randn(20, HEADS, DIM)), []
    for given in (own, condition):
        window = EightBitWindow(GEOMETRY, HEADS, DIM, "cpu")
        written(window, given, tokens(40), calibration)
        written_keys.append(window.own)
    joined = type(written_keys[0])(
        torch.cat([part.k for part in written_keys]),
        torch.cat([part.v for part in written_keys], dim=-1),
    )
    apart = attend(q, written_keys, calibration, torch.float32)
    assert relative(apart, attend(q, [joined], calibration, torch.float32)) < 0.02
    assert relative(apart, attend(q, written_keys[:1], calibration, torch.float32)) > 0.3


def test_values_lie_permuted_with_tokens_side_by_side():
    v = torch.arange(48.0).view(48, 1, 1).expand(-1, HEADS, DIM) / 8
    window = EightBitWindow(GEOMETRY, HEADS, DIM, "cpu")
    write(window.own, KeysValues(v, v), unit(0.125))
    order = [slot * SLOT_TOKENS + place for slot in range(3) for place in PERMUTED]
    assert sorted(order) == list(range(48))
    expected = torch.tensor(order, dtype=torch.float32).to(FLOAT8).float()
    assert torch.equal(window.own.v[1, 3].float(), expected)


def test_what_exceeds_the_headroom_is_clamped():
    window, v = EightBitWindow(GEOMETRY, HEADS, DIM, "cpu"), torch.full((40, HEADS, DIM), 1e6)
    write(window.condition, KeysValues(v, v), unit())
    assert (window.condition.k == 127).all()
    held = window.condition.v.float()
    assert held.isfinite().all()
    assert held.max() == 448
    assert (held[..., -8:] == 0).sum() == HEADS * DIM * 4  # of the last slot only half is tokens


@pytest.mark.parametrize("window_frames", [4, 5, 8, 12])
def test_a_ring_holds_exactly_the_last_frames(window_frames):
    torch.manual_seed(0)
    geometry = Geometry(64, 64, window_frames)
    ring, window = (kind(geometry) for kind in (_ring, _window))
    storage, kept = ring.k.data_ptr(), []
    for _ in range(7):
        own = tokens(geometry.block_tokens)
        write(window.own, own, unit(0.05))
        ring.append(window.own)
        kept += own.k.split(geometry.frame_tokens)
        k, v = ring.past()
        held = k.float() * 0.05
        last = kept[-geometry.past_frames :]
        assert len(held) == len(v[0, 0]) == len(last) * geometry.frame_tokens
        frames = held.split(geometry.frame_tokens)
        for expected in last:
            assert min(relative(frame, expected) for frame in frames) < 0.02
    assert ring.k.data_ptr() == storage
    assert all(past.data_ptr() == own.data_ptr() for past, own in zip(ring.past(), ring.tensors, strict=True))


def _ring(geometry: Geometry) -> EightBitRing:
    return EightBitRing.empty(geometry, HEADS, DIM, "cpu")


def _window(geometry: Geometry) -> EightBitWindow:
    return EightBitWindow(geometry, HEADS, DIM, "cpu")
