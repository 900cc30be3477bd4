"""The ladder: order, skipping, and what each rung changes."""

from __future__ import annotations

from dataclasses import replace

from avatar.planning.fallback_ladder import rungs
from avatar.preset import Fallback, load_preset

FULL = load_preset("80gb").with_settings(enable_online_decode=False)


def test_the_guides_order_one_change_on_top_of_another():
    taken = list(rungs(FULL))
    assert [rung for rung, _ in taken] == ["online_decode", "infer_frames", "size", "sample_steps", "offload"]
    before = FULL
    for (_, preset), change in zip(
        taken,
        (
            {"enable_online_decode": True},
            {"infer_frames": 32},
            {"size": "384*256"},
            {"sample_steps": 3},
            {"offload_model": True},
        ),
    ):
        assert preset == before.with_settings(**change)
        before = preset


def test_a_preset_that_stands_on_a_rung_skips_it():
    low = FULL.with_settings(enable_online_decode=True, infer_frames=16, size="256*256", sample_steps=2)
    assert [rung for rung, _ in rungs(low)] == ["offload"]
    assert list(rungs(low.with_settings(offload_model=True))) == []


def test_a_preset_may_reorder_and_forbid():
    own = replace(FULL, fallback=Fallback(("sample_steps", "size")))
    assert [rung for rung, _ in rungs(own)] == ["sample_steps", "size"]
    assert list(rungs(replace(FULL, fallback=Fallback(())))) == []


def test_what_a_layout_cannot_do_is_left_out_and_said(caplog):
    caplog.set_level("INFO")
    several = FULL.with_settings(layout="timesteps", num_gpus_dit=4)
    assert [rung for rung, _ in rungs(several)] == ["online_decode", "infer_frames", "size"]
    assert "the rung sample_steps is left out. timesteps gives every stage a step" in caplog.text
    assert "the rung offload is left out. This version offloads on one GPU" in caplog.text
    three = FULL.with_settings(layout="timesteps", num_gpus_dit=3)
    assert [rung for rung, _ in rungs(three)][-1] == "sample_steps"


def test_the_preview_has_the_size_alone():
    preview = replace(load_preset("cpu-preview"), fallback=Fallback())
    assert [rung for rung, _ in rungs(preview)] == ["size"]
