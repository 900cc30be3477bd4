"""Estimates: the arithmetic by hand, and a page that is what the module prints."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from avatar.geometry import Geometry, Size
from avatar.planning.layout import Layout
from avatar.preset import load_preset
from benchmarks.estimate import (
    CARDS,
    H200,
    MEASURED,
    RTX_3090,
    RTX_4090,
    CountedWork,
    Utilisation,
    checks,
    estimate,
    estimates,
    in_other_format,
    page,
)

GEOMETRY = Geometry.of(Size(704, 384), 48)


def test_operations_are_those_of_the_matrices():
    """Layer 1 injects no audio. Every product of m by n takes 2 m n operations a token."""
    tokens, dim, wide = 3 * 44 * 24, 5120, 13824
    seen = 12 * 44 * 24 + 2640  # the window, reference and motion
    prompt = 32 * 2 * dim + 40 * 32 * 2 * dim  # a short one: scores, and each head's outputs summed
    work = CountedWork.of(range(1, 2), GEOMETRY)
    assert work.products == tokens * (5 * 2 * dim * dim + 2 * 2 * dim * wide)
    assert work.attention == tokens * (2 * 2 * dim * seen + prompt)
    with_audio = CountedWork.of(range(1), GEOMETRY)
    assert with_audio.products > work.products + tokens * 2 * dim * dim
    assert with_audio.attention == work.attention


def test_the_measured_card_gives_back_what_was_measured():
    used, work = Utilisation.measured(), CountedWork.of(range(40), GEOMETRY)
    for dtype, name in (("bf16", "h200-80gb"), ("fp8", "h200-80gb-fp8")):
        measured = json.loads((MEASURED / f"{name}.json").read_text())["parts"]
        assert used.item_s(work, H200, dtype) == pytest.approx(measured["step_ms"] / 1000)
    assert 0.3 < used.int8 < used.fp8 < used.bf16 < 0.9
    assert used.decode_s(GEOMETRY, H200) == pytest.approx(0.087, rel=0.05)


def test_the_slowest_part_sets_the_pace():
    preset = load_preset("4x4090-low-vram")
    four = estimate(preset, RTX_4090)
    assert len(four.ranks_s) == 4
    assert four.fps == pytest.approx(12 / max(four.ranks_s[1:]))
    role = Layout.of(preset).role_of(2)
    assert {len(role.layers_at(step)) for step in range(3)} == {13, 14}  # it shares the layers at its ends
    tera = sum(CountedWork.of(role.layers_at(step), Geometry(64 * 61, 64, 8)).tera for step in range(3))
    by_hand = tera / (Utilisation.measured().bf16 * RTX_4090.bf16_tflops)
    assert four.ranks_s[2] == pytest.approx(by_hand)
    one = load_preset("24gb")
    assert estimate(one, RTX_4090, 25e9).fps == pytest.approx(1.0)  # a second of the bus for every frame
    assert estimate(one, RTX_4090).fps == estimate(one, RTX_4090, 1.0).fps


def test_a_card_without_fp8_computes_in_bf16():
    work = CountedWork.of(range(40), GEOMETRY)
    used = Utilisation.measured()
    assert used.item_s(work, RTX_3090, "fp8") == used.item_s(work, RTX_3090, "bf16")
    faster = replace(RTX_3090, bf16_tflops=2 * RTX_3090.bf16_tflops)
    assert used.item_s(work, faster, "fp8") == pytest.approx(used.item_s(work, RTX_3090, "fp8") / 2)


def test_weights_in_8_bits_are_what_a_card_multiplies_faster():
    work, used = CountedWork.of(range(40), GEOMETRY), Utilisation.measured()
    assert {card.name: card.format for card in CARDS if card.format == "fp8"}.keys() == {"H200", "L40S", "L4"}
    by_hand = work.products / 1e12 / (used.int8 * 284.0) + work.attention / 1e12 / (used.bf16 * 71.0)
    assert used.item_s(work, RTX_3090, "int8") == pytest.approx(by_hand)
    row = estimate(load_preset("24gb"), RTX_3090)
    assert row.dtype == "int8"
    other = in_other_format(row)
    assert other is not None
    assert other.dtype == "fp8"
    assert other.fps < row.fps
    assert in_other_format(estimate(load_preset("80gb"), RTX_3090)) is None


def test_the_weakest_part_is_named():
    one = load_preset("24gb")
    row = estimate(one, RTX_3090)
    (parts,) = row.parts_s
    assert sum(parts.values()) == pytest.approx(row.ranks_s[0])
    assert row.weakest.partition(",")[0] == max(parts, key=lambda name: parts[name])
    assert estimate(one, RTX_3090, 25e9).weakest == "bus"


def test_what_can_be_checked_is_not_far_off():
    for _, guess, fps in checks():
        assert 0.6 < fps / guess < 1.2


def test_the_page_is_what_the_module_prints():
    assert (MEASURED / "ESTIMATES.md").read_text(encoding="utf-8") == page()
    assert len(estimates()) == 16
