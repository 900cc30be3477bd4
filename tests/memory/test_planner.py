"""The planner's arithmetic against published and measured figures, and its monotony."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from avatar.errors import BadInput
from avatar.memory.inventory import GIB, Inventory
from avatar.memory.plan import ALWAYS, DevicePlan, Item, Plan, Stage
from avatar.memory.planner import largest_geometry, plan, ring_bytes, weight_bytes
from avatar.models.config import ModelConfig
from avatar.preset import load_preset

MODEL = ModelConfig()
H200 = Inventory.imagine(1, 139)
FULL = load_preset("80gb")
FP8 = FULL.with_settings(weight_dtype="fp8")


def items(preset, inventory=H200):
    return {item.name: item.num_bytes for item in plan(preset, inventory).gpus[0].items}


def test_published_sizes():
    """16.30 B parameters; at 704*384 1056 tokens a latent frame and 2640 of condition, 40 layers of 5120."""
    assert weight_bytes(FULL) == pytest.approx(32.6e9, rel=1e-3)
    assert weight_bytes(FP8) == pytest.approx(16.66e9, rel=1e-3)
    geometry = largest_geometry(FULL)
    assert (geometry.frame_tokens, geometry.condition_tokens) == (1056, 2640)
    whole_window = ring_bytes(FULL, MODEL) * geometry.window_frames / geometry.past_frames
    assert whole_window == pytest.approx(41.5e9, rel=2e-3)
    assert items(FULL)["condition_kv"] == pytest.approx(2.2e9, rel=2e-2)


@pytest.mark.parametrize(("preset", "measured_gib"), [(FULL, 72.6), (FP8, 57.6)])
def test_within_five_percent_of_what_the_public_code_took(preset, measured_gib):
    """Measured on one H200, random weights, 704*384, 48 frames, 4 steps; its rings hold the whole window."""
    geometry = largest_geometry(preset)
    own_block = ring_bytes(preset, MODEL) * (geometry.window_frames / geometry.past_frames - 1)
    gpu = plan(preset, H200).gpus[0]
    speech = sum(item.num_bytes for item in gpu.items if item.name == "speech_encoder")  # not there then
    denoising = gpu.stage_bytes(Stage.DENOISE) + own_block - speech
    assert denoising / GIB == pytest.approx(measured_gib, rel=0.05)


def test_decode_takes_what_was_measured():
    there = items(FULL)
    assert 5 <= (there["decode_workspace"] + there["decode_pasts"]) / GIB <= 6


@pytest.mark.parametrize(
    ("change", "shrinks"),
    [
        ({"infer_frames": 32}, "kv_rings"),
        ({"size": "384*256"}, "condition_kv"),
        ({"sample_steps": 3}, "kv_rings"),
        ({"offload_model": True}, "transformer_weights"),
        ({"weight_dtype": "fp8"}, "transformer_weights"),
        ({"ring_dtype": "fp8"}, "kv_rings"),
    ],
)
def test_every_saving_saves(change, shrinks):
    lower = FULL.with_settings(**change)
    assert items(lower)[shrinks] < items(FULL)[shrinks]
    assert plan(lower, H200).gpus[0].peak_bytes < plan(FULL, H200).gpus[0].peak_bytes


def test_rings_follow_the_number_of_steps_and_the_past():
    one = ring_bytes(FULL.with_settings(sample_steps=1), MODEL)
    assert ring_bytes(FULL, MODEL) == 4 * one
    assert (
        ring_bytes(FULL.with_settings(sample_steps=1, infer_frames=24), MODEL) == one // 3
    )  # 9 of 12, 3 of 6


def test_without_online_decode_the_transformer_is_gone_when_the_decoder_works():
    later = plan(FULL.with_settings(enable_online_decode=False), H200).gpus[0]
    assert later.stage_bytes(Stage.DECODE) < 9 * GIB
    assert later.stage_bytes(Stage.DENOISE) < plan(FULL, H200).gpus[0].stage_bytes(Stage.DECODE)


def test_what_is_offloaded_lies_on_the_host():
    here, there = plan(FP8, H200), plan(FP8.with_settings(offload_model=True), H200)
    gained = there.host.stage_bytes(Stage.DENOISE) - here.host.stage_bytes(Stage.DENOISE)
    assert gained == weight_bytes(FP8) + ring_bytes(FP8, MODEL)
    moved = FULL.with_settings(text_encoder="cpu")
    assert "text_encoder" not in items(moved)
    assert "text_encoder" in {item.name for item in plan(moved, H200).host.items}


@pytest.mark.parametrize(
    ("name", "vram_gib", "ram_gib"),
    [("80gb", 79, 24), ("48gb", 44.5, 32), ("24gb", 22.15, 46), ("12gb", 11.2, 40)],
)
def test_each_preset_fits_the_card_it_is_named_after(name, vram_gib, ram_gib):
    machine = Inventory.imagine(1, vram_gib, host_ram_gib=ram_gib)
    planned = plan(load_preset(name), machine)
    assert planned.fits, planned.shortfall
    assert not plan(load_preset(name), Inventory.imagine(1, 5)).fits


def test_memory_that_others_hold_counts_against_the_plan():
    busy = replace(H200.gpus[0], free_bytes=60 * GIB, used_bytes=79 * GIB)
    planned = plan(FULL, replace(H200, gpus=(busy,)))
    assert planned.gpus[0].available_bytes == 60 * GIB
    assert not planned.fits
    ours = replace(busy, ours_bytes=79 * GIB)  # our own engine, still warm, would make room
    assert plan(FULL, replace(H200, gpus=(ours,))).fits


def test_unknown_free_memory_is_no_promise():
    blind = replace(H200.gpus[0], free_bytes=None)
    planned = plan(FULL, replace(H200, gpus=(blind,)))
    assert not planned.fits
    assert "unknown" in planned.shortfall


def test_no_gpu_is_a_plan_that_does_not_fit():
    planned = plan(FULL, Inventory.imagine(0, 0))
    assert not planned.fits
    assert "not here" in planned.shortfall


@pytest.mark.parametrize("name", ["cpu-preview", "self-test"])
def test_presets_without_gpu_plan_the_host_alone(name):
    planned = plan(load_preset(name), Inventory.imagine(0, 0, host_ram_gib=8))
    assert planned.gpus == ()
    assert planned.fits
    assert planned.host.peak_bytes > 0
    assert not plan(load_preset(name), Inventory.imagine(0, 0, host_ram_gib=0.25)).fits


def test_several_gpus_share_what_one_would_hold():
    planned = plan(load_preset("4x4090-low-vram"), Inventory.imagine(4, 24, host_ram_gib=64))
    assert planned.fits
    alone = plan(load_preset("4x4090-low-vram").with_settings(layout="local", num_gpus_dit=1), H200)
    for name in ("transformer_weights", "kv_rings"):
        parts = [item.num_bytes for gpu in planned.devices[:-1] for item in gpu.items if item.name == name]
        whole = next(item.num_bytes for item in alone.devices[-2].items if item.name == name)
        assert len(parts) == 3
        assert sum(parts) == pytest.approx(whole, rel=0.001)
    assert "vae_weights" not in {item.name for item in planned.devices[1].items}


def test_auto_and_wrong_layouts_are_refused_by_name():
    with pytest.raises(BadInput, match="ulysses_size 2"):
        plan(load_preset("4x4090-low-vram").with_settings(ulysses_size=2), Inventory.imagine(4, 24))
    with pytest.raises(BadInput, match="auto"):
        plan(load_preset("auto"), H200)


def made(**sizes: int) -> Plan:
    stages = {"rings": (Stage.DENOISE,), "workspace": (Stage.DECODE,)}
    parts = tuple(Item(name, size * GIB, stages.get(name, ALWAYS)) for name, size in sizes.items())
    gpu = DevicePlan("GPU 3 (Card)", 3, parts, 10 * GIB, 12 * GIB)
    return Plan("mine", "diffusion", (gpu,), DevicePlan("the host", None, (), GIB, GIB))


def test_the_peak_is_the_fullest_stage_not_the_sum():
    gpu = made(weights=5, rings=4, workspace=3).gpus[0]
    assert gpu.peak_stage == Stage.DENOISE
    assert gpu.peak_bytes == 9 * GIB
    assert [item.name for item in gpu.peak_items] == ["weights", "rings"]


def test_peaks_are_found_by_nvmls_index():
    planned = made(weights=5)
    assert planned.peak_bytes(3) == 5 * GIB
    assert planned.peak_bytes(0) is None


def test_the_shortfall_names_the_device_and_the_largest_item():
    planned = made(weights=5, rings=7)
    assert not planned.fits
    for words in ("12.0 GiB", "GPU 3 (Card)", "2.0 GiB short", "rings, 7.0 GiB"):
        assert words in planned.shortfall
    assert made(weights=10).fits
    assert made(weights=10).shortfall == ""


def test_a_plan_is_json():
    data = json.loads(json.dumps(plan(FULL, H200).as_dict()))
    assert data["is_estimate"] is True
    assert data["fits"] is True
    assert data["gpus"][0]["peak_bytes"] == plan(FULL, H200).gpus[0].peak_bytes
    assert {"name", "num_bytes", "stages"} == set(data["gpus"][0]["items"][0])
