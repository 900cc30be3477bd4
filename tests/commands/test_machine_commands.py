"""`presets`, `plan` and `doctor`: what this machine, or an imagined one, can run."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType
from PIL import Image

from avatar.checkpoints.locations import Checkpoint
from avatar.cli import main
from avatar.commands import doctor, plan
from avatar.planning.layout import unsupported
from avatar.preset import load_preset, load_presets
from tests.commands.surroundings import H200, lines
from tests.fixtures.single_files import gguf_of_full_size
from tests.fixtures.tokenizer import write_tokenizer

ASTRONAUT = Path(__file__).parents[2] / "assets" / "portraits" / "astronaut.jpg"


def test_presets_as_table_and_as_json(machine, capsys):
    assert main(["presets"]) == 0
    table = capsys.readouterr().out
    assert "cpu-preview" in table
    assert "takes cpu-preview" in table
    assert main(["presets", "--json"]) == 0
    (found,) = lines(capsys)
    by_name = {preset["name"]: preset for preset in found}
    assert set(by_name) == {preset.name for preset in load_presets()}
    assert by_name["cpu-preview"]["availability"]["ok"]
    assert not by_name["80gb"]["availability"]["ok"]
    assert by_name["80gb"]["availability"]["missing"]
    assert by_name["4x4090-low-vram"]["parallel"]["num_gpus_dit"] == 3


def test_presets_that_lack_the_same_share_a_row_of_the_doctors(machine, capsys):
    machine(replace(H200, gpus=(), no_gpu_reason="No NVIDIA driver."))
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert len(re.findall("this machine has", shown)) == 5  # for one card, two, three, four and five
    names = " ".join(re.findall("[0-9a-z-]+", shown))
    assert all(preset.name in names for preset in load_presets() if preset.engine != "auto")


def test_why_there_is_no_gpu_is_said_once(machine, capsys):
    machine(replace(H200, gpus=(), no_gpu_reason="No NVIDIA driver."))
    assert main(["presets"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("No NVIDIA driver.") == 1
    assert "python -m avatar doctor" in shown


def test_the_plan_of_absent_cards_names_the_way_to_imagine_them(machine, capsys):
    machine(replace(H200, gpus=(), no_gpu_reason="No NVIDIA driver."))
    assert main(["plan", "--preset", "2x24gb"]) == 4
    shown = " ".join(capsys.readouterr().out.split())
    command = re.search(r"`python -m avatar (plan --preset 2x24gb --gpus 2 --vram 22)`", shown)
    assert command is not None
    assert main(command[1].split()) == 0
    assert "Preset 2x24gb would run on such a machine." in capsys.readouterr().out
    assert main(["plan", "--preset", "2x24gb", "--gpus", "2", "--vram", "8"]) == 4
    assert "It would not run on such a machine." in capsys.readouterr().out


def test_plan_of_an_imagined_machine(machine, capsys):
    assert main(["plan", "--preset", "80gb", "--gpus", "1", "--vram", "80"]) == 0
    table = capsys.readouterr().out
    assert "transformer weights" in table
    assert "estimated" in table
    assert main(["plan", "--preset", "80gb", "--gpus", "1", "--vram", "24", "--json"]) == 4
    (found,) = lines(capsys)
    assert not found["fits"]
    assert "short" in found["shortfall"]
    assert found["way_out"]
    assert found["imagined"]


@pytest.mark.parametrize(
    ("gpus", "vram", "preset", "width", "height"),
    [
        (1, 16, "16gb", 704, 384),
        (1, 10, "10gb", 512, 320),
        (2, 24, "2x24gb", 688, 368),
        (0, 1, "cpu-preview", 704, 704),
    ],
)
def test_plan_of_auto_tells_preset_size_and_fit(machine, capsys, gpus, vram, preset, width, height):
    flags = ["--gpus", str(gpus), "--vram", str(vram)]
    assert main(["plan", "--preset", "auto", *flags, "--json"]) == 0
    (found,) = lines(capsys)
    assert (found["preset"], found["width"], found["height"], found["fits"]) == (preset, width, height, True)
    assert found["lacks"] == []
    assert [gpu["index"] for gpu in found["takes"]] == list(range(gpus if preset != "16gb" else 1))


def test_plan_tells_that_layers_stay_gguf_blocks(machine, capsys, tmp_path, monkeypatch):
    """Only on the host that has no room for them otherwise; its weights are those that are here."""
    checkpoint = gguf_of_full_size(tmp_path, GGMLQuantizationType.Q4_0)
    monkeypatch.setattr(plan, "locate", lambda _: checkpoint)
    flags = ["plan", "--preset", "12gb", "--gpus", "1", "--vram", "11.2", "--ram"]
    assert main([*flags, "31"]) == 0
    shown = capsys.readouterr().out
    for words in ("GGUF blocks", "GGUF workspace", "40 layers as GGUF blocks, the rings"):
        assert words in shown
    assert main([*flags, "64"]) == 0
    assert "GGUF" not in capsys.readouterr().out


@pytest.mark.parametrize(("capability", "said"), [("8.6", True), ("8.9", False)])
def test_plan_tells_where_attention_cannot_run_in_8_bits(machine, capsys, capability, said):
    card = ["--gpus", "1", "--vram", "24", "--compute_capability", capability]
    assert main(["plan", "--preset", "24gb", *card]) == 0
    assert ("Attention runs in bf16, over rings in fp8" in capsys.readouterr().out) == said


def test_plan_takes_the_settings_flags(machine, capsys):
    machine(H200)
    main(["plan", "--preset", "80gb", "--json"])
    main(["plan", "--preset", "80gb", "--sample-steps", "2", "--json"])
    (full,), (half,) = ([json.loads(line)] for line in capsys.readouterr().out.splitlines())
    rings = [
        next(i["num_bytes"] for i in p["gpus"][0]["items"] if i["name"] == "kv_rings") for p in (full, half)
    ]
    assert rings[0] == 2 * rings[1]


@pytest.mark.parametrize(
    ("preset", "size"), [("cpu-preview", (704, 704)), ("80gb", (512, 512)), ("8gb", (256, 256))]
)
def test_plan_tells_the_size_of_a_portraits_video(machine, capsys, preset, size):
    flags = ["plan", "--preset", preset, "--gpus", "1", "--vram", "80", "--image", str(ASTRONAUT)]
    main([*flags, "--json"])
    assert lines(capsys)[0]["video"] == {"width": size[0], "height": size[1]}
    main(flags)
    assert f"astronaut.jpg becomes a video of {size[0]}×{size[1]} pixels." in capsys.readouterr().out


def test_plan_tells_of_a_small_portrait(machine, capsys, tmp_path):
    Image.new("RGB", (100, 100)).save(tmp_path / "small.png")
    flags = ["plan", "--preset", "cpu-preview", "--image", str(tmp_path / "small.png")]
    assert main(flags) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "small.png becomes a video of 200×200 pixels. warning: The video of small.png has 200×200" in said
    assert main([*flags, "--json"]) == 0
    assert [text[:22] for text in lines(capsys)[0]["notices"]] == ["The video of small.png"]


def test_plan_refuses_a_prompt_that_is_too_long(machine, capsys, tmp_path):
    checkpoint = Checkpoint(base=tmp_path, complete=True)
    write_tokenizer(tmp_path / checkpoint.layout.tokenizer)
    machine(replace(H200, checkpoint=checkpoint))
    assert main(["plan", "--preset", "80gb", "--prompt", "a " * 600]) == 2
    assert "601 tokens" in capsys.readouterr().err


def test_plan_of_this_machine_resolves_auto(machine, capsys):
    assert main(["plan", "--json"]) == 0
    assert lines(capsys)[0]["preset"] == "cpu-preview"


def test_plan_shows_several_gpus_and_what_this_version_cannot_do_yet(machine, capsys):
    machine_of_four = ["--gpus", "4", "--vram", "24"]
    assert main(["plan", "--preset", "4x4090-low-vram", *machine_of_four, "--json"]) == 0
    reported = lines(capsys)[0]
    assert [gpu["index"] for gpu in reported["gpus"]] == [0, 1, 2, 3]
    assert bool(reported["unsupported"]) == bool(unsupported(load_preset("4x4090-low-vram")))
    assert main(["plan", "--preset", "12gb", "--gpus", "1", "--vram", "11.2", "--json"]) == 0
    assert lines(capsys)[0]["placement"]["layers_on_host"] > 0


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (["--gpus", "4"], 2),
        (["--vram", "24"], 2),
        (["--gpus", "-1", "--vram", "24"], 2),
        (["--gpus", "1", "--vram", "0"], 2),
        (["--gpus", "1", "--vram", "nan"], 2),
        (["--gpus", "1", "--vram", "inf"], 2),
        (["--gpus", "1000000000", "--vram", "24"], 2),
        (["--ram", "64"], 2),
        (["--gpus", "1", "--vram", "24", "--compute_capability", "new"], 2),
        (["--gpus", "1", "--vram", "24", "--ram", "0"], 2),
    ],
)
def test_plan_refuses_half_a_machine(machine, capsys, flags, code):
    assert main(["plan", *flags]) == code
    assert capsys.readouterr().err.startswith("error: ")


def test_doctor_judges_the_machine_or_one_preset(machine, capsys):
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "No NVIDIA driver." in text
    assert "Preset cpu-preview runs on this machine." in text
    assert main(["doctor", "--preset", "80gb", "--json"]) == 1
    (found,) = lines(capsys)
    assert not found["ok"]
    assert "80gb" in found["verdict"]
    assert {preset["preset"] for preset in found["presets"]} >= {"80gb", "cpu-preview"}
    assert found["inventory"]["gpus"] == []
    assert main(["doctor", "--preset", "80"]) == 2
    machine(H200)
    assert main(["doctor", "--preset", "80gb"]) == 0


def test_doctor_tells_of_the_self_test_if_asked(machine, monkeypatch, capsys):
    monkeypatch.setattr(doctor.doctor, "self_test", lambda: doctor.doctor.SelfTest(25, 3.2))
    assert main(["doctor", "--json"]) == 0
    assert main(["doctor", "--json", "--self-test"]) == 0
    without, tested = lines(capsys)
    assert without["self_test"] is None
    assert tested["self_test"] == {"num_frames": 25, "elapsed_s": 3.2}
    assert main(["doctor", "--self-test"]) == 0
    assert "made 25 frames" in capsys.readouterr().out
