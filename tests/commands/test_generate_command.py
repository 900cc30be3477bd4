"""`generate`: every flag obeyed, exit codes, JSON, Ctrl-C, and what was made kept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import av
import pytest

from avatar.cli import main
from avatar.commands import generate
from avatar.errors import BadInput
from avatar.hardware.inventory import Inventory
from avatar.long import job
from avatar.planning.layout import Layout
from avatar.preset import load_preset
from avatar.runtime.report import read_report
from tests.commands.surroundings import H200, lines

ROOT = Path(__file__).parents[2]


def test_a_video_is_made_and_its_path_printed(inputs, machine, engine, capsys):
    opened = engine()
    assert main([*inputs, "--output", "out.mp4", "--seed", "5"]) == 0
    assert capsys.readouterr().out == "out.mp4\n"
    assert opened[0].generation.seed == 5
    with av.open("out.mp4") as video:
        assert video.streams.video[0].frames == 75


def test_a_video_smaller_than_asked_for_is_told(inputs, machine, engine, capsys):
    engine()
    assert main([*inputs, "--preset", "cpu-preview", "--output", "o.mp4"]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert told.count("warning: The video of p.png has 192×192 pixels instead of 704×704") == 1
    assert [one["code"] for one in read_report(Path("o.report.json")).notices].count("smaller_video") == 1


def test_the_default_output_names_portrait_and_speech(inputs, machine, engine, capsys):
    engine()
    assert main(inputs) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path.parent == Path("outputs")
    assert path.name.startswith("p-s-")
    assert path.is_file()


def test_json_lines_tell_every_event(inputs, machine, engine, capsys):
    engine()
    assert main([*inputs, "--json", "--output", "out.mp4"]) == 0
    events = lines(capsys)
    started = {"preset": "cpu-preview", "engine": "preview", "num_frames": 75, "width": 192, "height": 192}
    assert events[0] == {"event": "started", **started}
    assert sum(event["num_frames"] for event in events if event["event"] == "segment") == 75
    assert events[-1]["event"] == "finished"
    assert events[-1]["video"] == "out.mp4"
    kinds = {"started", "plan", "progress", "segment", "finished", "notice"}
    assert kinds == {event["event"] for event in events}
    [plan] = [event for event in events if event["event"] == "plan"]
    assert plan["preset"] == "cpu-preview"
    assert plan["fits"]
    assert plan["host"]["peak_bytes"] > 0


def test_nothing_is_left_behind(inputs, machine, engine, tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    engine()
    assert main([*inputs, "--output", "out.mp4"]) == 0
    assert main([*inputs, "--output", "no/such.avi"]) == 2
    assert list(scratch.iterdir()) == []


def test_the_longest_speech_is_bounded(inputs, machine, engine, capsys):
    engine()
    assert main([*inputs, "--output", "out.mp4", "--max_duration", "0.5"]) == 2
    assert "s.wav" in capsys.readouterr().err
    assert not Path("out.mp4").exists()


def test_an_engine_that_fails_keeps_what_was_made(inputs, machine, engine, capsys):
    engine(fault="error", at=40)
    assert main([*inputs, "--output", "out.mp4", "--json"]) == 1
    *_, finished, error = lines(capsys)
    assert finished["event"] == "finished"
    assert finished["stopped"]
    assert error["event"] == "error"
    assert error["message"] == "The lamp went out."
    assert error["exit_code"] == 1
    assert Path("out.mp4").is_file()


def test_a_lost_engine_has_its_own_code(inputs, machine, engine, capsys):
    engine(fault="kill", at=60)
    assert main([*inputs, "--output", "out.mp4"]) == 5
    assert "SIGKILL" in capsys.readouterr().err


def test_a_flag_counts_even_where_it_says_what_auto_has_anyway(inputs, machine, engine, monkeypatch):
    machine(H200)
    opened = engine()
    fewer = load_preset("80gb").with_settings(sample_steps=3)
    monkeypatch.setattr("avatar.planning.preset_choice.resolve", lambda *_, **__: fewer)
    assert main([*inputs, "--sample_steps", "4", "--output", "out.mp4"]) == 0
    assert opened[0].generation.sample_steps == 4


def test_the_guides_flags_reach_the_engine_on_a_machine_that_has_it(inputs, machine, engine):
    machine(H200)
    opened = engine()
    guide = [
        "--prompt",
        "a man",
        "--size",
        "688*368",
        "--infer_frames",
        "32",
        "--num_clip",
        "100",
        "--sample_steps",
        "3",
    ]
    more = [
        "--enable_online_decode",
        "--num_gpus_dit",
        "1",
        "--offload_model",
        "False",
        "--shift",
        "2.5",
        "--seed",
        "9",
    ]
    assert main([*inputs, *guide, *more, "--output", "out.mp4"]) == 0
    expected = load_preset("96gb").with_settings(
        prompt="a man", size="688*368", infer_frames=32, num_clip=100, sample_steps=3, shift=2.5, seed=9
    )
    assert opened == [expected]


GUIDE = (
    "--size 688*368 --infer_frames 32 --num_clip 100 --sample_steps 3 --enable_online_decode "
    "--num_gpus_dit 3 --ulysses_size 3"
)
REFERENCE = (
    "--ulysses_size 1 --task s2v-14B --size 720*400 --base_seed 420 "
    "--training_config liveavatar/configs/s2v_causal_sft.yaml --offload_model False --convert_model_dtype "
    "--prompt dwarf --infer_frames 48 --load_lora --lora_path_dmd Quark-Vision/Live-Avatar --sample_steps 4 "
    "--sample_guide_scale 0 --num_clip 10000 --num_gpus_dit 4 --sample_solver euler --enable_vae_parallel "
    "--fp8 --save_file out.mp4"
)


@pytest.mark.parametrize(
    ("command", "num_gpus", "kind", "degrees"),
    [
        (GUIDE, 4, "ulysses", (1, 3, True)),
        (GUIDE, 3, "ulysses", (1, 3, False)),
        (REFERENCE, 5, "timesteps", (4, 1, True)),
    ],
)
def test_published_commands_for_several_gpus_work_as_they_are(
    inputs, machine, engine, command, num_gpus, kind, degrees
):
    machine(Inventory.imagine(num_gpus, 139, host_ram_gib=128))
    opened = engine()
    assert main([*inputs, *command.split()]) == 0
    (preset,) = opened
    layout = Layout.of(preset)
    assert (layout.num_stages, layout.group_size, layout.decodes_apart) == degrees
    assert layout.world_size == num_gpus
    assert layout.kind == kind or layout.num_stages == 1


@pytest.mark.parametrize("flags", ["--t5_fsdp", "--text_encoder sharded"])
@pytest.mark.parametrize("layout", ["--parallel layers", "--parallel fsdp", "--ulysses_size 2"])
def test_the_prompt_encoder_may_be_spread_over_several_gpus(inputs, machine, engine, flags, layout):
    machine(Inventory.imagine(2, 139, host_ram_gib=128))
    opened = engine()
    several = f"--preset 80gb --num_gpus_dit 2 {layout} {flags} --output out.mp4"
    assert main([*inputs, *several.split()]) == 0
    assert [preset.memory.text_encoder for preset in opened] == ["sharded"]


def test_points_beside_the_portrait_or_named_go_to_the_preview(inputs, machine, engine, monkeypatch):
    seen = []
    engine()
    open_request = job.open_request
    monkeypatch.setattr(
        job, "open_request", lambda *a, **k: (seen.append(k["face_points"]), open_request(*a, **k))[1]
    )
    points = json.loads((ROOT / "assets/portraits/cactus.json").read_text())
    Path("named.json").write_text(json.dumps(points))
    assert main([*inputs, "--output", "a.mp4"]) == 0
    assert main([*inputs, "--output", "a.mp4", "--points", "named.json"]) == 0
    Path("p.json").write_text(json.dumps(points))
    assert main([*inputs, "--output", "a.mp4"]) == 0
    chin = tuple(points["points"]["chin"])
    assert [found and found["chin"] for found in seen] == [None, chin, chin]
    Path("p.json").write_text('{"points": {"chinn": [0.5, 0.5]}}')
    assert main([*inputs, "--output", "a.mp4"]) == 2


CTRL_C = """
import sys
from avatar.commands import generate
from avatar.runtime.engine_process import EngineProcess
generate.open_engine = lambda *_, **__: EngineProcess("tests.fixtures.sources:Coloured", frame_s=0.05)
from avatar.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_stops_and_keeps_the_finished_part(inputs, number):
    argv = [sys.executable, "-c", CTRL_C, *inputs, "--preset", "cpu-preview", "--json", "--output", "out.mp4"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as child:
        events = []
        for line in child.stdout:
            events.append(json.loads(line))
            if events[-1]["event"] == "segment" and events[-1]["index"] == 0:
                child.send_signal(number)
        assert child.wait(30) == 128 + number, child.stderr.read()
    finished = events[-1]
    assert finished["event"] == "finished"
    assert finished["stopped"]
    assert 18 <= finished["num_frames"] < 75
    with av.open("out.mp4") as video:
        assert video.streams.video[0].frames == finished["num_frames"]


@pytest.mark.parametrize("as_json", [False, True])
def test_auto_says_what_keeps_the_cards_from_more(inputs, machine, engine, capsys, as_json):
    engine()
    machine(replace(H200, driver_version="550.54", driver_cuda="12.4", torch_build="2.12.0"))
    assert main([*inputs, "--output", "out.mp4", *(["--json"] if as_json else [])]) == 0
    reported = capsys.readouterr()
    words = reported.out if as_json else reported.err
    assert "The GPUs here could run 96gb. The NVIDIA driver 550.54 runs CUDA up to 12.4" in words
    assert "whl/cu126" in words


class EarlyEngine:
    """Tells when its process starts and ends."""

    def __init__(self, told: list[str]) -> None:
        self._told = told

    def warm(self) -> None:
        self._told.append("starts")

    def close(self) -> None:
        self._told.append("ends")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ([], ["starts", "reads", "ends"]),
        (["--resume"], ["reads"]),
        (["--jobs", "2"], ["reads"]),
        (["--preset", "cpu-preview"], ["reads"]),
    ],
)
def test_a_gpus_engine_starts_before_the_files_are_read(inputs, machine, monkeypatch, flags, told):
    """What is then refused ends it."""
    order: list[str] = []

    def read(*_: object, **__: object) -> None:
        order.append("reads")
        raise BadInput("This portrait cannot be used.", "Take another.")

    machine(H200)
    monkeypatch.setattr(generate, "open_engine", lambda *_, **__: EarlyEngine(order))
    monkeypatch.setattr(job, "open_request", read)
    assert main([*inputs, "--preset", "80gb", *flags]) == 2
    assert order == told
