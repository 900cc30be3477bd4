"""What a preset lacks on a machine, what auto takes, and which error says so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from avatar.checkpoints.locations import Checkpoint
from avatar.errors import BadInput, DoesNotFit, WeightsMissing
from avatar.hardware.inventory import GIB, Inventory
from avatar.planning.verdict import judge, require, resolve, what_to_try, within_reach
from avatar.preset import load_preset, load_presets

FULL = load_preset("80gb")
AUTO = load_preset("auto")
NOTHING = Inventory.imagine(0, 0)
H200 = Inventory.imagine(1, 139)
BARE = replace(H200, checkpoint=Checkpoint(missing=("config.json",)))


def codes(preset, inventory):
    return [shortfall.code for shortfall in judge(preset, inventory).shortfalls]


@pytest.mark.parametrize(
    ("inventory", "expected"),
    [
        (H200, []),
        (Inventory.imagine(8, 80), []),
        (NOTHING, ["num_gpus"]),
        (BARE, ["weights"]),
        (Inventory.imagine(1, 40), ["memory"]),
        (Inventory.imagine(1, 80, compute_capability="7.5"), ["compute_capability"]),
        (Inventory.imagine(1, 80, compute_capability="10.0"), []),
        (replace(H200, torch_build="2.13.0+cpu", torch_cuda=""), ["torch"]),
        (replace(H200, torch_build="", torch_cuda=""), ["not_installed"]),
        (replace(H200, driver_cuda="12.4"), ["driver"]),
        (replace(H200, driver_cuda="12.4", torch_cuda="12.6"), []),  # one major version: they go together
        (replace(H200, driver_cuda=None), []),
        (replace(Inventory.imagine(1, 95, compute_capability="12.0"), torch_cuda="12.6"), ["torch_arch"]),
        (replace(H200, system="windows"), ["system"]),
        (replace(H200, system="darwin"), ["system"]),
        (replace(H200, system="wsl"), []),
        (Inventory.imagine(1, 139, host_ram_gib=4), ["host_ram"]),
        (replace(Inventory.imagine(1, 40), checkpoint=Checkpoint(missing=("x",))), ["weights", "memory"]),
        (replace(H200, gpus=(replace(H200.gpus[0], free_bytes=20 * GIB),)), ["memory"]),
        (replace(H200, gpus=(replace(H200.gpus[0], free_bytes=None),)), ["unreadable"]),
    ],
)
def test_everything_that_can_lack(inventory, expected):
    found = judge(FULL, inventory)
    assert codes(FULL, inventory) == expected
    assert found.ok == (not expected)
    assert len(found.missing) == len(expected)
    assert bool(found.remedy) == bool(expected)
    json.dumps(found.as_dict())


def mixed(*gib, capabilities=(), used=()):
    """A machine of unlike cards: memory, and where it matters capability and what others hold, of each."""
    machine = Inventory.imagine(len(gib), 1)
    gpus = [
        replace(
            Inventory.imagine(1, size).gpus[0],
            index=index,
            uuid=f"GPU-{index}",
            compute_capability=(capabilities or ["8.9"] * len(gib))[index],
            free_bytes=round((size - (used or [0] * len(gib))[index]) * GIB),
        )
        for index, size in enumerate(gib)
    ]
    return replace(machine, gpus=tuple(gpus))


@pytest.mark.parametrize(
    ("name", "machine", "indices"),
    [
        ("24gb", mixed(12, 24), [1]),
        ("24gb", mixed(24, 12), [0]),
        ("24gb", mixed(24, 24, used=(20, 0)), [1]),
        ("80gb", mixed(80, 80, capabilities=("8.0", "9.0")), [1]),  # of those alike the newer
        ("24gb", mixed(24, 48, capabilities=("8.9", "8.6")), [1]),  # where all stays on the card
        ("24gb", mixed(24, 24, capabilities=("7.5", "8.6")), [1]),
        ("2x24gb", mixed(8, 24, 12, 24), [1, 3]),
        ("2x24gb", mixed(17.6, 24), [1, 0]),  # the fuller rank gets the larger card
        ("5x80gb-tpp", mixed(16, 80, 80, 80, 80), [0, 1, 2, 3, 4]),  # a small one decodes
        ("5x80gb-tpp", mixed(80, 80, 80, 80, 16), [4, 0, 1, 2, 3]),
    ],
)
def test_the_best_cards_are_taken_by_uuid_whatever_their_number(name, machine, indices):
    found = judge(load_preset(name), machine)
    assert found.ok, found.missing
    assert [gpu.index for gpu in found.gpus] == indices
    assert found.uuids == [f"GPU-{index}" for index in indices]
    assert [gpu.index for gpu in found.plan.gpus] == indices


def test_instances_of_a_divided_card_serve_one_at_a_time():
    instances = tuple(replace(gpu, uuid=f"MIG-{gpu.index}") for gpu in Inventory.imagine(2, 40).gpus)
    machine = replace(Inventory.imagine(2, 40), gpus=instances)
    assert judge(load_preset("24gb"), machine).uuids == ["MIG-0"]
    assert codes(load_preset("2x24gb"), machine) == ["instance"]
    assert resolve(AUTO, machine).num_gpus == 1


@pytest.mark.parametrize(
    ("runs", "capability", "words"),
    [
        ("13.0", "8.9", "whl/cu130`."),
        ("13.2", "12.0", "whl/cu130`."),
        ("12.4", "8.6", "whl/cu126`, or update the NVIDIA driver to 580"),
        ("12.8", "12.0", 'torch>=2.11,<2.12" --index-url https://download.pytorch.org/whl/cu128`'),
        ("11.8", "8.0", "Update the NVIDIA driver to 580 or newer."),
    ],
)
def test_one_command_mends_a_pytorch_that_does_not_match(runs, capability, words):
    machine = Inventory.imagine(1, 95, compute_capability=capability)
    found = judge(FULL, replace(machine, driver_cuda=runs, torch_build="2.13.0+cpu", torch_cuda=""))
    assert [shortfall.code for shortfall in found.shortfalls] == ["torch"]
    assert words in found.remedy


def test_an_old_driver_leaves_auto_the_preview_and_says_why():
    old = replace(Inventory.imagine(1, 24), driver_version="550.54", driver_cuda="12.4", torch_build="2.11.0")
    assert resolve(AUTO, old).name == "cpu-preview"
    better = within_reach(old)
    assert better.preset.name == "24gb"
    assert " ".join(better.missing) == (
        "The NVIDIA driver 550.54 runs CUDA up to 12.4; PyTorch 2.11.0 needs CUDA 13.0."
    )
    assert "whl/cu126" in better.remedy
    assert within_reach(Inventory.imagine(1, 24)) is None
    assert within_reach(NOTHING) is None


def test_what_is_unsupported_is_named_on_any_machine():
    preset = load_preset("4x80gb-realtime").with_settings(offload_model=True)
    machine = Inventory.imagine(8, 139, host_ram_gib=512)
    found = judge(preset, machine)
    assert {shortfall.code for shortfall in found.shortfalls} == {"unsupported"}
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
    assert judge(preset, Inventory.imagine(num_gpus, 139)).ok
    with pytest.raises(DoesNotFit, match=f"needs {num_gpus} NVIDIA GPUs; .*has {num_gpus - 1}"):
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
    assert what_to_try(FULL, tight) == "Set infer_frames 32."
    tighter = replace(H200, gpus=(replace(H200.gpus[0], free_bytes=45 * GIB),))
    assert what_to_try(FULL, tighter) == "Set infer_frames 32, size 384*256."
    assert what_to_try(FULL, NOTHING) == "Choose the preset cpu-preview."
    cramped = Inventory.imagine(0, 0, host_ram_gib=0.25)
    assert "Close other programs" in what_to_try(FULL, cramped)


@pytest.mark.parametrize(
    ("inventory", "name"),
    [
        (NOTHING, "cpu-preview"),
        (BARE, "cpu-preview"),
        (H200, "96gb"),
        (Inventory.imagine(5, 80), "5x80gb-tpp"),
        (Inventory.imagine(4, 80), "4x80gb-realtime"),
        (Inventory.imagine(4, 32), "4x32gb"),
        (Inventory.imagine(4, 24), "4x4090-low-vram"),
        (Inventory.imagine(4, 24, compute_capability="8.6"), "4x4090-low-vram"),
        (Inventory.imagine(4, 16), "4x16gb"),
        (Inventory.imagine(3, 32), "3x32gb"),
        (Inventory.imagine(3, 24), "3x24gb"),
        (Inventory.imagine(2, 80), "2x48gb"),
        (Inventory.imagine(2, 48), "2x48gb"),
        (Inventory.imagine(2, 31.5), "2x32gb"),
        (Inventory.imagine(2, 24, compute_capability="8.6"), "2x24gb"),
        (Inventory.imagine(2, 16), "16gb"),
        (Inventory.imagine(1, 95), "96gb"),
        (Inventory.imagine(1, 80), "80gb"),
        (Inventory.imagine(1, 48), "48gb"),
        (Inventory.imagine(1, 48, compute_capability="8.6"), "48gb"),
        (Inventory.imagine(1, 40), "32gb"),
        (Inventory.imagine(1, 31.5), "32gb"),
        (Inventory.imagine(1, 24), "24gb"),
        (Inventory.imagine(1, 24, compute_capability="7.5"), "cpu-preview"),
        (Inventory.imagine(1, 24, host_ram_gib=16), "10gb"),  # full size would need more of the host
        (Inventory.imagine(1, 24, host_ram_gib=8), "cpu-preview"),
        (Inventory.imagine(1, 21), "16gb"),
        (Inventory.imagine(1, 16), "16gb"),
        (Inventory.imagine(1, 12), "12gb"),
        (Inventory.imagine(1, 12, host_ram_gib=31), "10gb"),  # full size would need more of the host
        (Inventory.imagine(1, 11), "12gb"),  # the nearest of those that fit
        (Inventory.imagine(1, 10), "10gb"),
        (Inventory.imagine(1, 7.5), "10gb"),
        (Inventory.imagine(1, 7.4), "8gb"),
        (Inventory.imagine(1, 5.8), "cpu-preview"),
    ],
)
def test_auto_takes_the_best_that_runs(inventory, name):
    assert resolve(AUTO, inventory).name == name


def test_auto_takes_the_higher_rank_of_equals_and_never_noise():
    better = replace(load_preset("cpu-preview"), name="mine", rank=500)
    assert resolve(AUTO, NOTHING, [*load_presets(), better]).name == "mine"
    with pytest.raises(DoesNotFit, match=r"No preset runs.*doctor"):
        resolve(AUTO, NOTHING, [AUTO, load_preset("self-test"), FULL])


def test_settings_laid_over_auto_reach_the_preset_taken():
    assert resolve(AUTO.with_settings(size="384*256", seed=7), H200).generation.size == "384*256"
    assert resolve(AUTO.with_settings(seed=7), NOTHING).generation.seed == 7
    assert resolve(AUTO, NOTHING) == load_preset("cpu-preview")
    assert resolve(AUTO.with_settings(ulysses_size=3), H200).engine == "preview"  # no preset honours it


def test_any_other_preset_resolves_to_itself():
    assert resolve(FULL, NOTHING) is FULL
    assert judge(AUTO, NOTHING).ok


def test_the_tiny_decoder_is_refused_without_its_file():
    wanted = FULL.with_settings(decoder="tiny")
    without = Checkpoint(base=Path("base"), complete=True)
    assert codes(wanted, H200) == []  # an imagined machine has every file
    assert codes(wanted, replace(H200, checkpoint=without)) == ["tiny_decoder"]
    assert codes(FULL, replace(H200, checkpoint=without)) == []
    assert codes(wanted, replace(H200, checkpoint=replace(without, tiny_decoder=Path("taew2_1.pth")))) == []
    assert codes(wanted, BARE) == ["weights", "tiny_decoder"]
    for machine in (replace(H200, checkpoint=without), BARE):
        with pytest.raises(WeightsMissing, match=r"taew2_1\.pth"):
            require(wanted, machine)
    assert codes(load_preset("self-test").with_settings(decoder="tiny"), BARE) == []  # it builds its own
