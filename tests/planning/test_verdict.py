"""One question, one answer: plan, doctor, auto, presets, the page and the engine's own gate agree."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from gguf import GGMLQuantizationType

from avatar.cli import main
from avatar.commands import plan as plan_command
from avatar.commands import presets as presets_command
from avatar.distributed import rank0_pipeline
from avatar.errors import AvatarError, DoesNotFit
from avatar.hardware.inventory import GIB, Inventory
from avatar.live.portrait_intake import live_preset
from avatar.pipeline import device_budget
from avatar.planning.auto_preset_order import preference
from avatar.planning.estimates import CUDA_CONTEXT_BYTES
from avatar.planning.preset_choice import choose
from avatar.planning.verdict import cards_of_each, judge, require
from avatar.preset import load_preset, load_presets
from avatar.runtime import doctor
from avatar.ui.state.app_state import AppState
from tests.fixtures.single_files import gguf_of_full_size

PRESETS = load_presets()


@dataclass(frozen=True)
class Machine:
    """An imagined machine, and what `auto` takes there. cards: (GiB, compute capability, GiB in use).

    A card of 0 GiB does not report its memory. torch: its CUDA, "" for none, None where it is not installed.
    """

    auto: str
    cards: tuple[tuple[float, str, float], ...] = ()
    ram: float = 64.0
    driver: str | None = "13.0"
    torch: str | None = "13.0"
    system: str = "linux"
    weights: bool = True
    refused: str = ""  # a preset that does not run there, and
    shortfall: str = ""  # why
    instances: bool = False
    gguf: str = ""  # the type of the blocks, if the transformer is a GGUF file
    missing_libraries: tuple[str, ...] = ()
    in_blocks: bool = False  # whether what auto takes keeps its layers as those blocks

    @property
    def inventory(self) -> Inventory:
        plain = Inventory.imagine(len(self.cards), 1, host_ram_gib=self.ram, with_checkpoint=self.weights)
        kind = "MIG" if self.instances else "GPU"
        gpus = tuple(
            replace(
                plain.gpus[index],
                uuid=f"{kind}-{index:08d}",
                total_bytes=round(size * GIB) if size else None,
                free_bytes=round((size - used) * GIB) if size else None,
                used_bytes=round(used * GIB) if size else None,
                compute_capability=capability,
            )
            for index, (size, capability, used) in enumerate(self.cards)
        )
        build = "" if self.torch is None else f"2.13.0{'' if self.torch else '+cpu'}"
        return replace(
            plain,
            gpus=gpus,
            torch_build=build,
            torch_cuda=self.torch or "",
            driver_cuda=self.driver if gpus else None,
            driver_version="999.11" if gpus else None,
            system=self.system,
            missing_libraries=self.missing_libraries,
        )


AMPERE, ADA, HOPPER, BLACKWELL, CONSUMER_BLACKWELL, TURING = "8.6", "8.9", "9.0", "10.0", "12.0", "7.5"


def cards(count: int, gib: float, capability: str, used: float = 0.0) -> tuple[tuple[float, str, float], ...]:
    return ((gib, capability, used),) * count


MACHINES = {
    "no GPU": Machine("cpu-preview", refused="24gb", shortfall="num_gpus"),
    "no GPU, 1 GiB of RAM": Machine("cpu-preview", ram=1, refused="self-test", shortfall="host_ram"),
    "macOS": Machine("cpu-preview", system="darwin", refused="80gb", shortfall="system"),
    "Windows, 4090": Machine(
        "cpu-preview", cards(1, 23.99, ADA), system="windows", refused="24gb", shortfall="system"
    ),
    "WSL2, 4090": Machine("24gb", cards(1, 23.99, ADA, 1.5), system="wsl"),
    "WSL2 with half of 64 GB, 4090": Machine("24gb", cards(1, 23.99, ADA, 1.5), system="wsl", ram=31),
    "WSL2 with half of 32 GB, 4090": Machine(
        "8gb", cards(1, 23.99, ADA, 1.5), system="wsl", ram=15.5, refused="24gb", shortfall="host_ram"
    ),
    "WSL2, 3060": Machine(
        "cpu-preview", cards(1, 12, AMPERE, 1.2), system="wsl", ram=15.5, refused="8gb", shortfall="host_ram"
    ),
    "6 GB": Machine("cpu-preview", cards(1, 5.8, ADA), refused="8gb", shortfall="memory"),
    "RTX 3050, 6 GB, without a screen": Machine("8gb", cards(1, 6, AMPERE)),
    "RTX 2060, 6 GB": Machine(
        "cpu-preview", cards(1, 6, TURING), refused="8gb", shortfall="compute_capability"
    ),
    "laptop, RTX 5060, 8 GB": Machine(
        "10gb", cards(1, 7.96, CONSUMER_BLACKWELL, 0.3), ram=31, refused="12gb", shortfall="memory"
    ),
    "laptop, RTX 4060, 16 GB of RAM": Machine(
        "cpu-preview", cards(1, 7.996, ADA, 0.4), ram=15.4, refused="8gb", shortfall="host_ram"
    ),
    "laptop, RTX 4060, 16 GB of RAM, Q4_0": Machine(
        "cpu-preview", cards(1, 7.996, ADA, 0.4), ram=15.4, gguf="Q4_0", refused="8gb", shortfall="host_ram"
    ),
    "RTX 4060, 8 GB": Machine("10gb", cards(1, 7.996, ADA, 0.4), refused="12gb", shortfall="memory"),
    "8 GB with a desktop": Machine("8gb", cards(1, 7.996, ADA, 0.9), refused="24gb", shortfall="memory"),
    "RTX 3080, 10 GB": Machine("10gb", cards(1, 10, AMPERE, 0.3), refused="12gb", shortfall="memory"),
    "RTX 3080 Ti, 12 GB": Machine("12gb", cards(1, 12, AMPERE, 0.5), refused="48gb", shortfall="memory"),
    "RTX 3060, 32 GiB of RAM": Machine(
        "10gb", cards(1, 12, AMPERE), ram=31, refused="12gb", shortfall="host_ram"
    ),
    "RTX 3060, 32 GiB of RAM, Q4_0": Machine(
        "12gb", cards(1, 12, AMPERE), ram=31, gguf="Q4_0", in_blocks=True, refused="48gb", shortfall="memory"
    ),
    "RTX 3060, 32 GiB of RAM, Q8_0": Machine(
        "10gb", cards(1, 12, AMPERE), ram=31, gguf="Q8_0", refused="12gb", shortfall="host_ram"
    ),
    "RTX 3060, 64 GiB of RAM, Q4_0": Machine("12gb", cards(1, 12, AMPERE), gguf="Q4_0"),
    "RTX 4060, 28 GiB of RAM": Machine(
        "8gb", cards(1, 7.996, ADA, 0.4), ram=27, refused="10gb", shortfall="host_ram"
    ),
    "RTX 4060, 24 GiB of RAM": Machine(
        "cpu-preview", cards(1, 7.996, ADA, 0.4), ram=23, refused="8gb", shortfall="host_ram"
    ),
    "RTX 4060, 24 GiB of RAM, Q4_0": Machine(
        "8gb", cards(1, 7.996, ADA, 0.4), ram=23, gguf="Q4_0", in_blocks=True
    ),
    "RTX 5070, 12 GB": Machine(
        "12gb", cards(1, 11.94, CONSUMER_BLACKWELL, 0.4), refused="48gb", shortfall="memory"
    ),
    "RTX 5060 Ti, 16 GB": Machine(
        "16gb", cards(1, 15.93, CONSUMER_BLACKWELL, 0.5), ram=31, refused="48gb", shortfall="memory"
    ),
    "RTX 5060 Ti, 16 GB of RAM": Machine(
        "cpu-preview", cards(1, 15.93, CONSUMER_BLACKWELL), ram=15.4, refused="16gb", shortfall="host_ram"
    ),
    "RTX 4080, 16 GB": Machine("16gb", cards(1, 15.99, ADA, 0.4), refused="80gb", shortfall="memory"),
    "RTX 4000 Ada, 20 GB": Machine("16gb", cards(1, 20, ADA), refused="48gb", shortfall="memory"),
    "RTX 3090": Machine("24gb", cards(1, 24, AMPERE, 0.3), refused="2x24gb", shortfall="num_gpus"),
    "RTX 4090 in use": Machine("10gb", cards(1, 24, ADA, 14), refused="48gb", shortfall="memory"),
    "RTX 5090": Machine("32gb", cards(1, 31.8, CONSUMER_BLACKWELL, 0.5), refused="80gb", shortfall="memory"),
    "L4": Machine("24gb", cards(1, 22.05, ADA), refused="48gb", shortfall="memory"),
    "A10G": Machine("24gb", cards(1, 22.15, AMPERE), refused="2x24gb", shortfall="num_gpus"),
    "RTX A6000": Machine("48gb", cards(1, 47.5, AMPERE)),
    "A100, 40 GB": Machine("32gb", cards(1, 39.5, "8.0"), refused="48gb", shortfall="memory"),
    "L40S": Machine("48gb", cards(1, 44.98, ADA), refused="80gb", shortfall="memory"),
    "H100": Machine("80gb", cards(1, 79.6, HOPPER, 0.4), refused="4x80gb-realtime", shortfall="num_gpus"),
    "H100 in use": Machine("48gb", cards(1, 79.6, HOPPER, 30), refused="80gb", shortfall="memory"),
    "RTX PRO 6000": Machine("96gb", cards(1, 95.6, CONSUMER_BLACKWELL)),
    "H200": Machine("96gb", cards(1, 139.8, HOPPER)),
    "H100, 16 GB of RAM": Machine("80gb", cards(1, 79.6, HOPPER), ram=15),
    "H100, 4 GB of RAM": Machine(
        "cpu-preview", cards(1, 79.6, HOPPER), ram=4, refused="80gb", shortfall="host_ram"
    ),
    "B300": Machine("96gb", cards(1, 268, "10.3")),
    "DGX Spark, which hides its memory": Machine(
        "cpu-preview", cards(1, 0, "12.1"), refused="80gb", shortfall="unreadable"
    ),
    "H200 without weights": Machine(
        "cpu-preview", cards(1, 139.8, HOPPER), weights=False, refused="80gb", shortfall="weights"
    ),
    "T4": Machine("cpu-preview", cards(1, 15, TURING), refused="16gb", shortfall="compute_capability"),
    "V100": Machine("cpu-preview", cards(1, 32, "7.0"), refused="32gb", shortfall="compute_capability"),
    "Turing": Machine("cpu-preview", cards(1, 24, TURING), refused="24gb", shortfall="compute_capability"),
    "4090, driver 550": Machine(
        "cpu-preview", cards(1, 24, ADA), driver="12.4", refused="24gb", shortfall="driver"
    ),
    "4090, driver 550, PyTorch for CUDA 12.6": Machine(
        "24gb", cards(1, 24, ADA), driver="12.4", torch="12.6"
    ),
    "3090, driver 470": Machine(
        "cpu-preview", cards(1, 24, AMPERE), driver="11.4", refused="24gb", shortfall="driver"
    ),
    "5090, driver 570": Machine(
        "cpu-preview",
        cards(1, 31.8, CONSUMER_BLACKWELL),
        driver="12.8",
        refused="32gb",
        shortfall="driver",
    ),
    "5090, driver 570, PyTorch for CUDA 12.8": Machine(
        "32gb", cards(1, 31.8, CONSUMER_BLACKWELL), driver="12.8", torch="12.8"
    ),
    "4090, the preview's requirements alone": Machine(
        "cpu-preview", cards(1, 24, ADA), torch=None, refused="24gb", shortfall="not_installed"
    ),
    "4090, the preview's requirements and PyTorch": Machine(
        "cpu-preview",
        cards(1, 24, ADA),
        missing_libraries=("diffusers",),
        refused="24gb",
        shortfall="not_installed",
    ),
    "4090, driver that hides its CUDA": Machine("24gb", cards(1, 24, ADA), driver=None),
    "4090, PyTorch for the CPU": Machine(
        "cpu-preview", cards(1, 24, ADA), torch="", refused="24gb", shortfall="torch"
    ),
    "5090, PyTorch for CUDA 12.6": Machine(
        "cpu-preview",
        cards(1, 31.8, CONSUMER_BLACKWELL),
        torch="12.6",
        refused="32gb",
        shortfall="torch_arch",
    ),
    "B200": Machine("96gb", cards(1, 179, BLACKWELL)),
    "3060 and 4090": Machine("24gb", ((12, AMPERE, 0), (24, ADA, 0)), refused="2x24gb", shortfall="memory"),
    "3090 and 3060": Machine(
        "24gb", ((24, AMPERE, 0.3), (12, AMPERE, 0)), refused="2x24gb", shortfall="memory"
    ),
    "4090 and 5060 Ti": Machine(
        "24gb",
        ((23.99, ADA, 0.5), (15.93, CONSUMER_BLACKWELL, 0)),
        refused="2x24gb",
        shortfall="memory",
    ),
    "5090 and 4090": Machine("2x24gb", ((31.8, CONSUMER_BLACKWELL, 0.5), (23.99, ADA, 0))),
    "4090 and 1080": Machine(
        "24gb", ((24, ADA, 0), (8, "6.1", 0)), refused="2x24gb", shortfall="compute_capability"
    ),
    "5090 and 3090, PyTorch for CUDA 12.6": Machine(
        "24gb",
        ((31.8, CONSUMER_BLACKWELL, 0), (24, AMPERE, 0)),
        torch="12.6",
        refused="2x24gb",
        shortfall="torch_arch",
    ),
    "two 3090s": Machine("2x24gb", cards(2, 24, AMPERE, 0.3)),
    "two 3090s, one in use": Machine(
        "24gb", ((24, AMPERE, 12), (24, AMPERE, 0)), refused="2x24gb", shortfall="memory"
    ),
    "two 3090s, 16 GB of RAM": Machine("2x24gb", cards(2, 24, AMPERE, 0.3), ram=15),
    "two 12 GB cards": Machine("12gb", cards(2, 12, AMPERE), refused="2x24gb", shortfall="memory"),
    "two A100s, 80 GB": Machine("2x48gb", cards(2, 79.2, "8.0")),
    "two H200s, one in use": Machine("96gb", ((139.8, HOPPER, 120), (139.8, HOPPER, 0))),
    "two 5090s": Machine("2x32gb", cards(2, 31.8, CONSUMER_BLACKWELL)),
    "two L40S": Machine("2x48gb", cards(2, 44.98, ADA)),
    "three 4090s": Machine("3x24gb", cards(3, 24, ADA)),
    "three 5090s": Machine("3x32gb", cards(3, 31.8, CONSUMER_BLACKWELL, 0.5)),
    "four T4-sized Ada cards": Machine("4x16gb", cards(4, 15.99, ADA)),
    "four 4090s": Machine("4x4090-low-vram", cards(4, 23.99, ADA, 0.3)),
    "four 3090s": Machine("4x4090-low-vram", cards(4, 24, AMPERE)),
    "four L40S": Machine("4x32gb", cards(4, 44.98, ADA)),
    "four L40S, two in use": Machine("2x48gb", cards(2, 44.98, ADA, 40) + cards(2, 44.98, ADA)),
    "four 4090s, 16 GB of RAM": Machine("4x4090-low-vram", cards(4, 23.99, ADA, 0.3), ram=15),
    "six 3060s": Machine("12gb", cards(6, 12, AMPERE), refused="4x16gb", shortfall="memory"),
    "eight 3090s": Machine("4x4090-low-vram", cards(8, 24, AMPERE)),
    "eight L40S": Machine("4x32gb", cards(8, 44.98, ADA), refused="96gb", shortfall="memory"),
    "eight A100s, 40 GB": Machine("4x32gb", cards(8, 39.5, "8.0")),
    "eight A100s, 80 GB": Machine("5x80gb-tpp", cards(8, 79.2, "8.0")),
    "four H100s": Machine("4x80gb-realtime", cards(4, 79.6, HOPPER)),
    "five H100s": Machine("5x80gb-tpp", cards(5, 79.6, HOPPER)),
    "eight H200s": Machine("5x80gb-tpp", cards(8, 139.8, HOPPER)),
    "eight 4090s, half in use": Machine(
        "4x4090-low-vram", cards(4, 24, ADA, 20) + cards(4, 24, ADA), refused="5x80gb-tpp", shortfall="memory"
    ),
    "a seventh of an H100": Machine(
        "10gb", cards(1, 9.75, HOPPER), instances=True, refused="12gb", shortfall="memory"
    ),
    "seven sevenths of an H200": Machine(
        "16gb", cards(7, 16, HOPPER), instances=True, refused="4x16gb", shortfall="instance"
    ),
    "a divided H100": Machine(
        "32gb", cards(2, 39.5, HOPPER), instances=True, refused="2x48gb", shortfall="instance"
    ),
}


@pytest.fixture(scope="module")
def gguf_files(tmp_path_factory):
    """From a type of blocks to a checkpoint of full size with no numbers in it."""
    return cache(lambda kind: gguf_of_full_size(tmp_path_factory.mktemp(kind), GGMLQuantizationType[kind]))


@pytest.mark.parametrize("name", MACHINES)
def test_everybody_gives_the_same_verdict(name, monkeypatch, capsys, tmp_path, gguf_files):
    machine = MACHINES[name]
    inventory = machine.inventory
    if machine.gguf:
        inventory = replace(inventory, checkpoint=gguf_files(machine.gguf))
    monkeypatch.setattr(plan_command, "probe", lambda *_: inventory)
    monkeypatch.setattr(presets_command, "probe", lambda *_: inventory)
    monkeypatch.setattr(doctor, "probe", lambda *_: inventory)
    app_state = AppState(SimpleNamespace(), SimpleNamespace(folder=tmp_path), PRESETS, "auto", tmp_path)
    monkeypatch.setattr("avatar.ui.state.machine_presets.probe", lambda *_: inventory)

    assert choose("auto", {}, inventory).name == machine.auto
    assert app_state.machine.resolved("auto").name == machine.auto
    by_auto = printed(capsys, ["plan", "--preset", "auto", "--json"])
    assert by_auto["preset"] == machine.auto
    assert by_auto["placement"]["layers_in_blocks"] is machine.in_blocks
    monkeypatch.setattr(doctor, "missing_libraries", lambda _: [])
    diagnosis = doctor.examine()
    judged = diagnosis.judged
    assert (judged.preset.name, judged.ok) == (machine.auto, True)
    in_the_list = {one["name"]: one["availability"] for one in printed(capsys, ["presets", "--json"])}
    on_the_page, at_the_doctors = app_state.machine.verdicts(), dict(preset_verdicts(diagnosis))
    reported = {preset.name: judge(preset, inventory) for preset in PRESETS if preset.engine != "auto"}
    for preset_name, verdict in reported.items():
        if preset_name in (machine.auto, machine.refused):
            planned = printed(capsys, ["plan", "--preset", preset_name, "--json"])
            assert planned["fits"] == verdict.ok
            assert bool(planned["way_out"]) == (not verdict.ok)
        assert in_the_list[preset_name]["ok"] == verdict.ok
        assert on_the_page[preset_name] == at_the_doctors[preset_name] == verdict
        assert app_state.machine.plan(verdict.preset)[0] == verdict.plan
        assert bool(app_state.machine.plan(verdict.preset)[1]) == (not verdict.ok)
        assert all(shortfall.text and shortfall.remedy for shortfall in verdict.shortfalls), preset_name
        if verdict.ok:
            assert require(verdict.preset, inventory) == verdict
            assert engines_own_plan(monkeypatch, verdict, inventory) == (verdict.plan.placement, True)
        elif preset_name == machine.refused:  # the page's plan, above, has asked of the others
            with pytest.raises(AvatarError) as caught:
                require(verdict.preset, inventory)
            assert caught.value.remedy
    assert reported[machine.auto].ok
    if machine.refused:
        assert machine.shortfall in [shortfall.code for shortfall in reported[machine.refused].shortfalls]


def test_the_machines_are_many_and_unlike():
    assert len(MACHINES) >= 30
    assert {len(machine.cards) for machine in MACHINES.values()} >= {0, 1, 2, 3, 4, 5, 8}
    assert {machine.auto for machine in MACHINES.values()} >= {
        preset.name for preset in PRESETS if preset.requires.weights != "tiny" and preset.engine != "auto"
    }


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_a_preset_fits_what_it_asks_for(preset):
    """With the cards and the host memory that its table row names."""
    asks = preset.requires
    if preset.engine == "auto":
        return
    machine = Inventory.imagine(
        preset.num_gpus,
        asks.vram_gib or 1,
        host_ram_gib=asks.host_ram_gib,
        compute_capability=asks.compute_capability,
    )
    assert judge(preset, machine).missing == []


def test_what_a_preset_may_offload_stays_where_there_is_room():
    for gib, waits in ((24, True), (48, False)):
        placed = judge(load_preset("24gb"), Inventory.imagine(1, gib)).plan.placement
        assert placed.offloads is waits


def printed(capsys, command):
    """What a command prints as JSON, whatever its exit code."""
    capsys.readouterr()
    main(command)
    return json.loads(capsys.readouterr().out)


def preset_verdicts(diagnosis):
    return ((preset.name, verdict) for preset, verdict in diagnosis.presets)


def engines_own_plan(monkeypatch, verdict, inventory):
    """The placement that the engine's process finds, with the verdict's cards alone; whether it fits."""
    preset, seen = verdict.preset, replace(inventory, gpus=verdict.gpus)
    if preset.engine == "preview" or not preset.num_gpus:
        return verdict.plan.placement, True
    if preset.num_gpus > 1:
        monkeypatch.setattr(rank0_pipeline, "probe", lambda *_, **__: seen)
        denoising = rank0_pipeline.RankDenoising(preset, None, SimpleNamespace(), None)
        planned = denoising.plan(preset, held=None, fixed=None, speech_s=120, share=1.0)
    else:
        planned = on_one_card(monkeypatch, preset, seen)
    return planned.placement, not any(gpu.shortfall_bytes for gpu in planned.gpus)


def on_one_card(monkeypatch, preset, seen, held=None):
    """As DiffusionPipeline plans: by what CUDA says of its device, whose context is there already."""
    gpu, device = seen.gpus[0], torch.device("cuda", 0)
    major, minor = map(int, gpu.compute_capability.split("."))
    facts = SimpleNamespace(
        name=gpu.name, total_memory=gpu.total_bytes, major=major, minor=minor, uuid=gpu.uuid.partition("-")[2]
    )
    cuda = torch.cuda
    monkeypatch.setattr(cuda, "get_device_properties", lambda _: facts)
    free_bytes = gpu.free_bytes - CUDA_CONTEXT_BYTES
    monkeypatch.setattr(cuda, "mem_get_info", lambda _: (free_bytes, gpu.total_bytes))
    monkeypatch.setattr(cuda, "memory_reserved", lambda _: 0)
    monkeypatch.setattr(cuda, "get_per_process_memory_fraction", lambda _: 1.0)
    monkeypatch.setattr(device_budget, "probe", lambda *_, **__: seen)
    return device_budget.plan_here(preset, device, held=held)


def test_a_loaded_model_is_kept_unless_the_host_lacks_room(monkeypatch, gguf_files):
    """Blocks stay where the dequantised layers would fit by now; those give way where they no longer do."""
    preset, files = load_preset("12gb"), gguf_files("Q4_0")
    roomy, tight = (
        replace(Machine("", cards(1, 12, AMPERE), ram=ram).inventory, checkpoint=files) for ram in (64, 31)
    )
    in_blocks, dequantised = judge(preset, tight).plan.placement, judge(preset, roomy).plan.placement
    assert (in_blocks.layers_in_blocks, dequantised.layers_in_blocks) == (True, False)
    for held, machine, expected in (
        (in_blocks, roomy, in_blocks),
        (in_blocks, tight, in_blocks),
        (dequantised, roomy, dequantised),
        (dequantised, tight, in_blocks),
    ):
        planned = on_one_card(monkeypatch, preset, machine, held)
        assert planned.fits
        assert planned.placement == replace(
            expected, rings_on_host=planned.placement.rings_on_host, diagonal=planned.placement.diagonal
        )


def test_layers_in_blocks_are_chosen_last(gguf_files):
    """Of presets that are alike in all else, auto takes the one that need not dequantise layers again."""
    preset, files = load_preset("12gb"), gguf_files("Q4_0")
    tight = replace(Machine("", cards(1, 12, AMPERE), ram=31).inventory, checkpoint=files)
    roomy = replace(Machine("", cards(1, 12, AMPERE)).inventory, checkpoint=files)
    slower, faster = (
        preference(preset, judge(preset, machine).plan, machine.gpus) for machine in (tight, roomy)
    )
    assert faster < slower


def test_a_request_for_less_fits_where_the_preset_does_not():
    machine = MACHINES["RTX 4080, 16 GB"].inventory
    preset = load_preset("48gb")
    assert not judge(preset, machine).ok
    assert judge(preset.with_settings(offload_model=True, text_encoder="cpu"), machine).ok


def test_live_sessions_at_a_time_have_cards_of_their_own():
    machine = Inventory.imagine(4, 80)
    assert cards_of_each(live_preset("live"), machine, 3) == [["GPU-0"], ["GPU-1"], ["GPU-2"]]
    assert cards_of_each(live_preset("live-2gpu"), machine, 2) == [["GPU-0", "GPU-1"], ["GPU-2", "GPU-3"]]
    assert cards_of_each(live_preset("live-preview"), Inventory.imagine(0, 0), 3) == [None] * 3


@pytest.mark.parametrize(("preset", "count"), [("live", 5), ("live-2gpu", 3)])
def test_more_live_sessions_than_cards_are_refused(preset, count):
    with pytest.raises(DoesNotFit, match=f"sessions of {preset} at a time, not for {count}"):
        cards_of_each(live_preset(preset), Inventory.imagine(4, 80), count)
