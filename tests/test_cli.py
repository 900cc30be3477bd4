"""The command line: every flag obeyed or refused by name, exit codes, JSON, and Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from avatar.abilities import unsupported
from avatar.cli import main, with_underscores
from avatar.commands import doctor, generate, plan, presets
from avatar.long import job
from avatar.memory.inventory import Inventory, probe
from avatar.parallel.layout import Layout
from avatar.preset import load_preset
from avatar.worker import EngineProcess

ROOT = Path(__file__).parent.parent
NO_GPU = replace(probe(), gpus=(), no_gpu_reason="No NVIDIA driver.")
H200 = Inventory.imagine(1, 139)


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    """A portrait and 3 s of sound in the current folder."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.full((96, 96, 3), 90, np.uint8)).save("p.png")
    soundfile.write("s.wav", np.sin(np.arange(48_000 * 3) * 0.05).astype(np.float32) * 0.3, 48_000)
    return ["generate", "--image", "p.png", "--audio", "s.wav"]


@pytest.fixture
def machine(monkeypatch):
    """Make every command see this inventory."""

    def become(inventory: Inventory) -> None:
        monkeypatch.setattr(generate, "probe", lambda *_, **__: inventory)
        monkeypatch.setattr(presets, "probe", lambda *_, **__: inventory)
        monkeypatch.setattr(plan, "probe", lambda *_, **__: inventory)
        monkeypatch.setattr(doctor.doctor, "probe", lambda *_, **__: inventory)

    become(NO_GPU)
    return become


@pytest.fixture
def engine(monkeypatch):
    """A real engine process whose frames are plain colours; records the presets it is opened with.

    In the end no process may be left.
    """
    opened, processes = [], []

    def become(**options: object):
        def open_engine(preset, **_):
            opened.append(preset)
            processes.append(EngineProcess("tests.fixtures.sources:Coloured", **options))
            return processes[-1]

        monkeypatch.setattr(generate, "open_engine", open_engine)
        return opened

    yield become
    assert [process.pid for process in processes if process.pid] == []


def lines(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_dashes_become_underscores_in_names_alone():
    given = ["generate", "--num-clip", "3", "--output=my-file.mp4", "--prompt", "a-b", "-h", "--"]
    assert with_underscores(given) == [
        "generate",
        "--num_clip",
        "3",
        "--output=my-file.mp4",
        "--prompt",
        "a-b",
        "-h",
        "--",
    ]


def test_a_video_is_made_and_its_path_printed(inputs, machine, engine, capsys):
    opened = engine()
    assert main([*inputs, "--output", "out.mp4", "--seed", "5"]) == 0
    assert capsys.readouterr().out == "out.mp4\n"
    assert opened[0].generation.seed == 5
    with av.open("out.mp4") as video:
        assert video.streams.video[0].frames == 75


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
    assert events[0] == {"event": "started", "preset": "cpu-preview", "engine": "preview", "num_frames": 75}
    assert sum(event["num_frames"] for event in events if event["event"] == "segment") == 75
    assert events[-1]["event"] == "finished"
    assert events[-1]["video"] == "out.mp4"
    assert {"started", "progress", "segment", "finished"} >= {event["event"] for event in events}


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
    engine(fault="told", at=40)
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


REFUSED_BY_PREVIEW = [
    ("--sample_steps", "3", "no denoising steps"),
    ("--sample-steps", "3", "no denoising steps"),
    ("--shift", "5", "no denoising steps"),
    ("--infer_frames", "32", "without clips"),
    ("--num_clip", "100", "without clips"),
    ("--enable_online_decode", None, "no transformer"),
    ("--offload_model", "True", "no transformer"),
    ("--offload_model", "False", "no transformer"),
    ("--weight_dtype", "fp8", "no transformer"),
    ("--ring_dtype", "fp8", "no transformer"),
    ("--text_encoder", "cpu", "no transformer"),
    ("--num_gpus_dit", "3", "CPU alone"),
    ("--ulysses_size", "3", "CPU alone"),
    ("--prompt", "a man", "reads no prompt"),
    ("--ckpt_dir", ".", "no checkpoint"),
]


@pytest.mark.parametrize(("flag", "value", "reason"), REFUSED_BY_PREVIEW)
@pytest.mark.parametrize("preset", ["cpu-preview", "auto"])
def test_what_the_preview_cannot_honour_is_refused_by_name(
    inputs, machine, engine, capsys, flag, value, reason, preset
):
    opened = engine()
    assert main([*inputs, "--preset", preset, flag, *([value] if value else [])]) == 2
    told = capsys.readouterr().err
    assert flag[2:].replace("-", "_") in told
    assert reason in told
    assert ("auto takes the preset cpu-preview" in told) == (preset == "auto")
    assert opened == []


def test_a_flag_counts_even_where_it_says_what_auto_has_anyway(inputs, machine, engine, monkeypatch):
    machine(H200)
    opened = engine()
    fewer = load_preset("80gb").with_settings(sample_steps=3)
    monkeypatch.setattr("avatar.memory.choice.resolve", lambda *_: fewer)
    assert main([*inputs, "--sample_steps", "4", "--output", "out.mp4"]) == 0
    assert opened[0].generation.sample_steps == 4


def test_points_are_refused_by_the_diffusion_engine(inputs, machine, engine, capsys):
    machine(H200)
    Path("points.json").write_text("{}")
    assert main([*inputs, "--points", "points.json"]) == 2
    assert "points" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (["--ulysses_size", "3"], "ulysses_size 3"),
        (["--num_gpus_dit", "4", "--ulysses_size", "3"], "num_gpus_dit 4"),
        (["--parallel", "fsdp", "--num_gpus_dit", "4", "--ulysses_size", "2"], "fsdp"),
        (["--parallel", "timesteps", "--num_gpus_dit", "5"], "timesteps"),
        (["--parallel", "rows", "--num_gpus_dit", "4"], "rows"),
        (["--num_gpus_dit", "2", "--offload_model", "True"], "offload_model True"),
    ],
)
def test_what_this_version_cannot_do_is_refused_by_name(inputs, machine, engine, capsys, flags, name):
    machine(Inventory.imagine(4, 139))
    opened = engine()
    assert main([*inputs, "--preset", "80gb", *flags]) == 2
    assert name in capsys.readouterr().err
    assert opened == []


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
    expected = load_preset("80gb").with_settings(
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


@pytest.mark.parametrize(
    "flags",
    [
        ["--t5_fsdp"],
        ["--sample_solver", "unipc"],
        ["--task", "t2v-14B"],
        ["--training_config", "mine.yaml"],
        ["--lora_path_dmd", "mine/lora"],
        ["--dit_fsdp", "--parallel", "layers"],
        ["--start_from_ref"],
    ],
)
def test_published_flags_that_cannot_be_honoured_are_refused_by_name(inputs, machine, engine, capsys, flags):
    opened = engine()
    with pytest.raises(SystemExit) as left:
        main([*inputs, *flags])
    assert left.value.code == 2
    assert flags[0] in capsys.readouterr().err
    assert opened == []


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--preset", "80g"], 2, "Did you mean '80gb'"),
        (["--size", "abc"], 2, "abc"),
        (["--seed", "-1"], 2, "seed"),
        (["--preset", "80gb"], 4, "NVIDIA"),
        (["--preset", "4x4090-low-vram"], 4, "4 NVIDIA GPUs"),
        (["--image", "none.png"], 2, "none.png"),
        (["--audio", "p.png"], 2, "p.png"),
        (["--points", "none.json"], 2, "none.json"),
        (["--output", "out.avi"], 2, "out.avi"),
        (["--max_duration", "0"], 2, "--max_duration is 0"),
        (["--max_duration", "nan"], 2, "--max_duration is nan"),
        (["--max_duration", "inf"], 2, "--max_duration is inf"),
    ],
)
def test_each_refusal_has_its_code_and_its_words(inputs, machine, engine, capsys, flags, code, words):
    opened = engine()
    assert main([*inputs, *flags]) == code
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert words in told
    assert "Traceback" not in told
    assert opened == []
    assert not Path("outputs").exists()


def test_missing_weights_have_their_own_code(inputs, machine, engine):
    machine(replace(H200, checkpoint=NO_GPU.checkpoint))
    assert main([*inputs, "--preset", "80gb"]) == 3


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["fly"],
        ["--verb", "presets"],
        ["generate"],
        ["generate", "--image", "a", "--audio", "b", "--sise", "1*1"],
        ["generate", "--image", "a", "--audio", "b", "--see", "1"],  # no abbreviations
        ["generate", "--image", "a", "--audio", "b", "--seed", "x"],
        ["generate", "--image", "a", "--audio", "b", "--offload_model", "maybe"],
        ["generate", "--image", "a", "--audio", "b", "--offload_model"],
    ],
)
def test_unknown_words_end_with_two(argv, capsys):
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    assert "usage" in capsys.readouterr().err


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
from avatar.worker import EngineProcess
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
        assert child.wait(30) == 130, child.stderr.read()
    finished = events[-1]
    assert finished["event"] == "finished"
    assert finished["stopped"]
    assert 18 <= finished["num_frames"] < 75
    with av.open("out.mp4") as video:
        assert video.streams.video[0].frames == finished["num_frames"]


def test_presets_as_table_and_as_json(machine, capsys):
    assert main(["presets"]) == 0
    table = capsys.readouterr().out
    assert "cpu-preview" in table
    assert "takes cpu-preview" in table
    assert main(["presets", "--json"]) == 0
    (found,) = lines(capsys)
    by_name = {preset["name"]: preset for preset in found}
    assert len(by_name) == 11
    assert by_name["cpu-preview"]["availability"]["ok"]
    assert not by_name["80gb"]["availability"]["ok"]
    assert by_name["80gb"]["availability"]["missing"]
    assert by_name["4x4090-low-vram"]["parallel"]["num_gpus_dit"] == 3


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


def test_plan_takes_the_settings_flags(machine, capsys):
    machine(H200)
    main(["plan", "--preset", "80gb", "--json"])
    main(["plan", "--preset", "80gb", "--sample-steps", "2", "--json"])
    (full,), (half,) = ([json.loads(line)] for line in capsys.readouterr().out.splitlines())
    rings = [
        next(i["num_bytes"] for i in p["gpus"][0]["items"] if i["name"] == "kv_rings") for p in (full, half)
    ]
    assert rings[0] == 2 * rings[1]


def test_plan_of_this_machine_resolves_auto(machine, capsys):
    assert main(["plan", "--json"]) == 0
    assert lines(capsys)[0]["preset"] == "cpu-preview"


def test_plan_shows_several_gpus_and_what_this_version_cannot_do_yet(machine, capsys):
    machine_of_four = ["--gpus", "4", "--vram", "24"]
    assert main(["plan", "--preset", "4x4090-low-vram", *machine_of_four, "--json"]) == 0
    told = lines(capsys)[0]
    assert [gpu["index"] for gpu in told["gpus"]] == [0, 1, 2, 3]
    assert bool(told["unsupported"]) == bool(unsupported(load_preset("4x4090-low-vram")))
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


def test_the_real_command_line_makes_a_real_preview(tmp_path):
    """As a user runs it: the preview engine, a drawn portrait with its points, a real clip of speech."""
    speech = sorted((ROOT / "tests/data/speech").glob("*.flac"))[0]
    argv = [
        sys.executable,
        "-m",
        "avatar",
        "generate",
        "--image",
        "assets/portraits/captain.png",
        "--audio",
        speech,
    ]
    argv += ["--preset", "cpu-preview", "--size", "256*256", "--output", tmp_path / "out.mp4"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'out.mp4'}\n"
    with av.open(str(tmp_path / "out.mp4")) as video:
        assert video.streams.video[0].average_rate == 25
        frames = [frame.to_ndarray(format="gray") for frame in video.decode(video=0)]
    assert len(frames) >= soundfile.info(speech).duration * 25 - 1
    assert max(np.abs(frames[0].astype(int) - frame).max() for frame in frames) > 30  # it moves


def test_a_long_speech_in_parts_is_resumed(inputs, machine, engine, capsys):
    engine(fault="told", at=60)
    long = [*inputs, "--output", "out.mp4", "--checkpoint-every", "1", "--json"]
    assert main(long) == 1
    events = lines(capsys)
    assert [event["index"] for event in events if event["event"] == "partdone"] == [0, 1]
    assert events[-1]["message"] == "The lamp went out."
    assert Path("out.parts/ledger.jsonl").is_file()
    engine()
    assert main([*inputs, "--output", "out.mp4"]) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*inputs, "--output", "out.mp4", "--resume", "--seed", "4"]) == 2
    assert "settings are others" in capsys.readouterr().err
    assert main([*inputs, "--output", "out.mp4", "--resume"]) == 0
    assert capsys.readouterr().out == "out.mp4\n"
    assert not Path("out.parts").exists()
    with av.open("out.mp4") as video:
        assert video.streams.video[0].frames == 75
    assert main([*inputs, "--output", "out.mp4", "--resume"]) == 0
    assert capsys.readouterr().out == "out.mp4\n"


def test_kept_parts_can_be_joined_by_hand(inputs, machine, engine, capsys):
    engine()
    assert main([*inputs, "--output", "out.mp4", "--checkpoint_every", "1", "--keep_parts"]) == 0
    parts = sorted(map(str, Path("out.parts").glob("*.mp4")))
    assert len(parts) == 3
    assert main(["join", *parts, "-o", "again.mp4"]) == 0
    with av.open("again.mp4") as video:
        assert video.streams.video[0].frames == 75


def test_parts_on_several_engines_are_the_same(inputs, machine, engine):
    opened = engine()
    parts = ["--checkpoint_every", "1", "--output"]
    assert main([*inputs, *parts, "one.mp4"]) == 0
    assert main([*inputs, *parts, "two.mp4", "--jobs", "2"]) == 0
    assert len(opened) == 3
    with av.open("one.mp4") as one, av.open("two.mp4") as two:
        assert [bytes(p) for p in one.demux(video=0)] == [bytes(p) for p in two.demux(video=0)]


@pytest.mark.parametrize("more", [["--jobs", "2"], ["--checkpoint_every", "1", "--jobs", "0"]])
def test_engines_without_parts_for_them_are_refused(inputs, machine, engine, capsys, more):
    opened = engine()
    assert main([*inputs, "--output", "out.mp4", *more]) == 2
    assert "--jobs" in capsys.readouterr().err
    assert opened == []
