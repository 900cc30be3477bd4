"""What a preset lacks on a machine, what auto takes, and which error says so."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from avatar.errors import BadInput, DoesNotFit, WeightsMissing
from avatar.planning.availability import availability, require, resolve, way_out
from avatar.planning.checkpoint_places import Checkpoint
from avatar.planning.inventory import GIB, Inventory
from avatar.preset import load_preset, load_presets

FULL = load_preset("80gb")
AUTO = load_preset("auto")
NOTHING = Inventory.imagine(0, 0)
H200 = Inventory.imagine(1, 139)
BARE = replace(H200, checkpoint=Checkpoint(missing=("config.json",)))


def codes(preset, inventory):
    return [lack.code for lack in availability(preset, inventory).lacks]


@pytest.mark.parametrize(
    ("inventory", "expected"),
    [
        (H200, []),
        (Inventory.imagine(8, 80), []),
        (NOTHING, ["num_gpus"]),
        (BARE, ["weights"]),
        (Inventory.imagine(1, 40), ["vram"]),
        (Inventory.imagine(1, 80, compute_capability="7.5"), ["compute_capability"]),
        (Inventory.imagine(1, 80, compute_capability="10.0"), []),
        (replace(H200, torch_build="2.13.0+cpu"), ["torch"]),
        (replace(H200, torch_build=""), ["torch"]),
        (Inventory.imagine(1, 139, host_ram_gib=16), ["host_ram"]),
        (replace(H200, gpus=(replace(H200.gpus[0], free_bytes=20 * GIB),)), ["memory"]),
        (replace(H200, gpus=(replace(H200.gpus[0], free_bytes=None),)), ["unreadable"]),
    ],
)
def test_everything_that_can_lack(inventory, expected):
    found = availability(FULL, inventory)
    assert codes(FULL, inventory) == expected
    assert found.ok == (not expected)
    assert len(found.missing) == len(expected)
    assert bool(found.remedy) == bool(expected)
    json.dumps(found.as_dict())


def test_a_second_card_is_looked_at_only_if_it_is_needed():
    mixed = replace(Inventory.imagine(2, 139), gpus=(H200.gpus[0], Inventory.imagine(2, 8).gpus[1]))
    assert availability(FULL, mixed).ok


def test_what_this_version_does_not_do_is_said_by_name_on_any_machine():
    preset = load_preset("4x80gb-realtime").with_settings(offload_model=True)
    machine = Inventory.imagine(8, 139, host_ram_gib=512)
    found = availability(preset, machine)
    assert {lack.code for lack in found.lacks} == {"unsupported"}
    assert "offload_model True" in " ".join(found.missing)
    with pytest.raises(BadInput, match=preset.name):
        require(preset, machine)


def test_a_layout_that_cannot_be_is_refused_by_its_own_words():
    wrong = FULL.with_settings(num_gpus_dit=4, ulysses_size=3)
    with pytest.raises(BadInput, match="num_gpus_dit 4 does not divide into groups of ulysses_size 3"):
        require(wrong, Inventory.imagine(8, 139))


@pytest.mark.parametrize(
    ("name", "settings", "num_gpus"),
    [
        ("4x4090-low-vram", {}, 4),
        ("4x80gb-realtime", {}, 4),
        ("5x80gb-tpp", {}, 5),
        ("80gb", {"num_gpus_dit": 3, "ulysses_size": 3}, 3),
        ("80gb", {"num_gpus_dit": 3, "ulysses_size": 3, "decode_gpu": True}, 4),
        ("5x80gb-tpp", {"decode_gpu": False}, 4),
        ("4x80gb-realtime", {"layout": "fsdp"}, 4),
    ],
)
def test_as_many_gpus_are_required_as_the_layout_takes(name, settings, num_gpus):
    preset = load_preset(name).with_settings(**settings)
    assert availability(preset, Inventory.imagine(num_gpus, 139)).ok
    with pytest.raises(DoesNotFit, match=f"needs {num_gpus} NVIDIA GPUs.*has {num_gpus - 1}"):
        require(preset, Inventory.imagine(num_gpus - 1, 139))


def test_require_passes_what_runs_and_raises_the_fitting_error():
    require(FULL, H200)
    require(load_preset("cpu-preview"), NOTHING)
    with pytest.raises(WeightsMissing, match=r"config\.json.*python -m avatar download"):
        require(FULL, BARE)
    with pytest.raises(DoesNotFit, match="none"):
        require(FULL, NOTHING)
    with pytest.raises(DoesNotFit, match=r"short.*largest item.*Set infer_frames 32"):
        require(FULL, replace(H200, gpus=(replace(H200.gpus[0], free_bytes=60 * GIB),)))


def test_way_out_prefers_a_rung_then_the_best_preset_that_fits():
    tight = replace(H200, gpus=(replace(H200.gpus[0], free_bytes=60 * GIB),))
    assert way_out(FULL, tight) == "Set infer_frames 32."
    tighter = replace(H200, gpus=(replace(H200.gpus[0], free_bytes=45 * GIB),))
    assert way_out(FULL, tighter) == "Set infer_frames 32, size 384*256."
    assert way_out(FULL, NOTHING) == "Choose the preset cpu-preview."
    cramped = Inventory.imagine(0, 0, host_ram_gib=0.25)
    assert "Close other programs" in way_out(FULL, cramped)


@pytest.mark.parametrize(
    ("inventory", "name"),
    [
        (NOTHING, "cpu-preview"),
        (BARE, "cpu-preview"),
        (H200, "80gb"),
        (Inventory.imagine(4, 24), "4x4090-low-vram"),
        (Inventory.imagine(5, 80), "5x80gb-tpp"),
        (Inventory.imagine(1, 80), "80gb"),
        (Inventory.imagine(1, 48), "48gb"),
        (Inventory.imagine(1, 48, compute_capability="8.6"), "48gb"),
        (Inventory.imagine(1, 40), "24gb"),
        (Inventory.imagine(1, 24), "24gb"),
        (Inventory.imagine(1, 24, compute_capability="7.5"), "cpu-preview"),
        (Inventory.imagine(1, 24, host_ram_gib=16), "cpu-preview"),
        (Inventory.imagine(1, 16), "12gb"),
        (Inventory.imagine(1, 12), "12gb"),
        (Inventory.imagine(1, 8), "cpu-preview"),
    ],
)
def test_auto_takes_the_best_that_runs(inventory, name):
    assert resolve(AUTO, inventory).name == name


def test_auto_goes_by_rank_and_never_takes_noise():
    better = replace(load_preset("cpu-preview"), name="mine", rank=500)
    assert resolve(AUTO, NOTHING, [*load_presets(), better]).name == "mine"
    with pytest.raises(DoesNotFit, match="doctor"):
        resolve(AUTO, NOTHING, [AUTO, load_preset("self-test"), FULL])


def test_settings_laid_over_auto_reach_the_preset_taken():
    assert resolve(AUTO.with_settings(size="384*256", seed=7), H200).generation.size == "384*256"
    assert resolve(AUTO.with_settings(seed=7), NOTHING).generation.seed == 7
    assert resolve(AUTO, NOTHING) == load_preset("cpu-preview")
    assert resolve(AUTO.with_settings(ulysses_size=3), H200).engine == "preview"  # no preset honours it


def test_any_other_preset_resolves_to_itself():
    assert resolve(FULL, NOTHING) is FULL
    assert availability(AUTO, NOTHING).ok
