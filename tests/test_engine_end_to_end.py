"""From the command line to the finished file: the diffusion engine's process, on a tiny checkpoint."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import av
import numpy as np
import psutil
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from avatar.checkpoints.locations import LORA_FILE, LORA_REPO, OFFICIAL
from avatar.cli import main
from avatar.commands import generate
from avatar.errors import AvatarError, WeightsMissing
from avatar.events import Activity, Finished, Phase, Progress, Segment
from avatar.geometry import Size
from avatar.media.intake import open_request
from avatar.media.sample_inputs import write_sample
from avatar.preset import load_preset
from avatar.request import Request
from avatar.runtime.engine import Engine
from avatar.runtime.factory import open_engine

ROOT = Path(__file__).parent.parent
PRESET = load_preset("self-test")


@pytest.fixture
def inputs(tmp_path, monkeypatch) -> list[str]:
    """A portrait and speech of 30 frames in the current folder, and the command that takes them."""
    monkeypatch.chdir(tmp_path)
    write_sample(tmp_path, Size(96, 96), 1.2)
    return ["generate", "--image", "portrait.png", "--audio", "speech.wav", "--output", "out.mp4"]


@pytest.fixture
def ask(tmp_path) -> Callable[..., Request]:
    def build(seconds: float, **settings) -> Request:
        folder = tmp_path / f"request-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        portrait, speech = write_sample(folder, Size(96, 96), seconds)
        return open_request(
            portrait,
            speech,
            PRESET.with_settings(**settings),
            output=folder / "out.mp4",
            work=folder / "work",
            segment_s=0.4,
        )

    return build


@pytest.fixture(scope="module")
def engine(tiny_checkpoint) -> Iterator[Engine]:
    """One warm engine process."""
    opened = open_engine(PRESET, weights=tiny_checkpoint)
    yield opened
    opened.close()


def pictures(video: Path) -> np.ndarray:
    with av.open(str(video)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def sound_s(video: Path) -> float:
    with av.open(str(video)) as container:
        return sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0))


def run(engine: Engine, request: Request) -> Finished:
    *_, last = engine.stream(request)
    assert isinstance(last, Finished)
    return last


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "avatar", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        timeout=600,
    )


def test_the_guides_command_on_a_toy_checkpoint(inputs, tiny_checkpoint, tmp_path):
    """Only the preset and the folder are the toy's: a machine without a GPU runs no other model."""
    guide = ["--prompt", "A fox in a blue coat speaks", "--size", "128*64", "--infer_frames", "48"]
    guide += ["--num_clip", "100", "--sample_steps", "4", "--enable_online_decode", "--seed", "7"]
    (tmp_path / "temporary").mkdir()
    done = command(
        *inputs,
        *guide,
        "--preset",
        "self-test",
        "--ckpt_dir",
        str(tiny_checkpoint),
        TMPDIR=str(tmp_path / "temporary"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "out.mp4\n"
    assert pictures(Path("out.mp4")).shape == (30, 64, 64, 3)  # the portrait is square
    assert sound_s(Path("out.mp4")) == pytest.approx(1.2, abs=0.04)
    report = json.loads(Path("out.report.json").read_text())
    assert report["engine"] == "self-test: noise"
    assert report["preset"]["generation"]["sample_steps"] == 4
    left = [path.name for path in (tmp_path / "temporary").iterdir()]
    assert [name for name in left if "torchinductor" not in name] == []


def test_another_presets_models_load_in_the_same_process(engine, ask):
    """Its libraries, GPU and compiled code are what a start takes longest for."""
    children = []
    for weight_dtype in ("fp32", "bf16", "fp8"):
        finished = run(engine, ask(0.4, weight_dtype=weight_dtype))
        assert finished.num_frames == 10
        children.append({child.pid for child in psutil.Process(engine.pid).children(recursive=True)})
    assert children[0]
    assert children == [children[0]] * 3


def test_a_run_tells_what_it_did_before_its_first_frame(ask, tiny_checkpoint):
    opened, request = open_engine(PRESET, weights=tiny_checkpoint), ask(0.4)
    try:
        told = [event for event in opened.stream(request) if isinstance(event, Progress)]
    finally:
        opened.close()
    doing = [event.activity for event in told if event.activity is not None]
    assert list(dict.fromkeys(doing)) == [Activity.STARTING, Activity.READING]
    took_s = json.loads(request.output.with_name("out.report.json").read_text())["activities_s"]
    assert set(took_s) == {Activity.STARTING, Activity.READING, Phase.ENCODING}
    assert min(took_s.values()) >= 0


def test_the_doctor_tests_the_engine(no_weights_elsewhere):
    done = command("doctor", "--self-test", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["self_test"]["num_frames"] == 25
    assert list(Path.cwd().iterdir()) == []


def test_two_runs_and_other_settings_on_a_warm_engine(engine, ask):
    first = run(engine, ask(1.2))
    pid = engine.pid
    second = run(engine, ask(1.2))
    other = run(engine, ask(0.8, size="128*64", infer_frames=20, sample_steps=1, enable_online_decode=False))
    assert engine.pid == pid
    assert engine.label == "self-test: noise"
    assert np.array_equal(pictures(first.video), pictures(second.video))
    assert (first.num_frames, other.num_frames) == (30, 20)
    assert len(pictures(other.video)) == 20


def test_a_cancelled_run_keeps_what_was_shown_and_the_engine_goes_on(engine, ask):
    segments, last = [], None
    for event in engine.stream(ask(60.0)):
        if isinstance(event, Segment):
            segments.append(event)
            engine.cancel()
        last = event
    assert isinstance(last, Finished)
    assert last.stopped
    assert last.error is None
    assert sum(segment.num_frames for segment in segments) == last.num_frames == len(pictures(last.video))
    assert last.num_frames < 1500
    assert run(engine, ask(0.2)).num_frames == 5


@pytest.mark.slow
def test_memory_stays_flat(engine, ask):
    """A minute of speech in an engine that is warm: neither process grows. Twenty were measured by hand."""
    run(engine, ask(4.0, sample_steps=1))
    processes = {"page": psutil.Process(), "engine": psutil.Process(engine.pid)}
    seen: dict[str, list[int]] = {name: [] for name in processes}
    for event in engine.stream(ask(60.0, sample_steps=1)):
        if isinstance(event, Progress) and event.frames_done > 10 * 25:
            for name, process in processes.items():
                seen[name].append(process.memory_info().rss)
    for sizes in seen.values():
        third = len(sizes) // 3
        assert third > 2
        assert median(sizes[-third:]) - median(sizes[:third]) < 50e6


def truncate_shard(base: Path) -> str:
    shard = min(base.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-100])
    return shard.name


def truncate_vae(base: Path) -> str:
    path = base / OFFICIAL.vae
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path.name


def remove_shard(base: Path) -> str:
    shard = max(base.glob("*.safetensors"))
    shard.unlink()
    return shard.name


def break_config(base: Path) -> str:
    (base / "config.json").write_text("{")
    return "config.json"


def lora_of_another_model(base: Path) -> str:
    path = base.parent / LORA_REPO.split("/")[1].replace("-", "") / LORA_FILE
    tensors = load_file(path)
    save_file({name.replace("blocks.0", "blocks.7"): tensor for name, tensor in tensors.items()}, path)
    return LORA_FILE


@pytest.fixture(scope="module")
def refusing() -> Iterator[Callable[[Path], Engine]]:
    """An engine of a folder that may be damaged between runs: what was refused is not kept."""
    opened: dict[Path, Engine] = {}

    def engine_of(folder: Path) -> Engine:
        return opened.setdefault(folder, open_engine(PRESET, weights=folder))

    yield engine_of
    for one in opened.values():
        one.close()


@pytest.fixture(scope="module")
def damaged(tiny_checkpoint, tmp_path_factory) -> Path:
    """A folder to which the checkpoint is copied afresh before each damage."""
    return tmp_path_factory.mktemp("damaged") / "weights"


@pytest.mark.parametrize(
    "damage", [truncate_shard, truncate_vae, remove_shard, break_config, lora_of_another_model]
)
def test_bad_weights_are_explained_in_plain_words(
    damage, damaged, refusing, tiny_checkpoint, ask, no_weights_elsewhere
):
    shutil.rmtree(damaged, ignore_errors=True)
    shutil.copytree(tiny_checkpoint, damaged)
    name = damage(damaged / OFFICIAL.repo.split("/")[1])
    with pytest.raises(WeightsMissing) as caught:
        run(refusing(damaged), ask(0.2))
    message = str(caught.value)
    assert name in message
    assert "python -m avatar download" in message or "Wan-AI/Wan2.2-S2V-14B" in message
    assert str(damaged) not in message
    assert "/tmp" not in message
    assert "Traceback" not in message


def test_a_missing_checkpoint_has_its_exit_code(inputs, no_weights_elsewhere, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main([*inputs, "--preset", "self-test", "--ckpt_dir", "nowhere", "--json"]) == 3
    error = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert error["kind"] == "WeightsMissing"
    assert "--ckpt_dir" in error["message"]
    assert not Path("out.mp4").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--infer_frames", "30"], ["infer_frames", "30", "multiple of 4"]),
        (["--size", "abc"], ["size", "abc", "704*384"]),
        (["--size", "64*32"], ["64*32", "too small", "grid"]),
        (["--sample_steps", "0"], ["sample_steps", "1 to 8"]),
        (["--sample_steps", "9"], ["sample_steps", "1 to 8"]),
        (["--sample_guide_scale", "4.5"], ["sample_guide_scale", "4.5", "distilled"]),
        (["--guide_scale", "1"], ["sample_guide_scale", "1", "distilled"]),
        (["--fps", "30"], ["fps", "30", "25"]),
        (["--num_gpus_dit", "3", "--ulysses_size", "2"], ["num_gpus_dit 3", "ulysses_size 2"]),
    ],
)
def test_what_cannot_be_made_is_refused_before_an_engine_opens(inputs, capsys, monkeypatch, flags, words):
    monkeypatch.setattr(generate, "open_engine", lambda *_, **__: pytest.fail("opened"))
    assert main([*inputs, "--preset", "self-test", *flags]) == 2
    message = capsys.readouterr().err
    assert [word for word in words if word not in message] == []


def test_too_narrow_a_portrait_is_refused_before_an_engine_opens(inputs, capsys, monkeypatch):
    Image.new("RGB", (6400, 64), "red").save("portrait.png")
    monkeypatch.setattr(generate, "open_engine", lambda *_, **__: pytest.fail("opened"))
    assert main([*inputs, "--preset", "self-test", "--size", "128*128"]) == 2
    assert "too narrow" in capsys.readouterr().err


def test_guidance_of_nought_is_obeyed(inputs, monkeypatch):
    opened = []

    def closed(preset, **_):
        opened.append(preset)
        raise AvatarError("Not today.")

    monkeypatch.setattr(generate, "open_engine", closed)
    assert main([*inputs, "--preset", "self-test", "--guide_scale", "0.0", "--fps", "25"]) == 1
    assert opened[0].name == "self-test"
