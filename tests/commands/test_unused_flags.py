"""Flags that would change nothing are refused: beside which others, by which command, in which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from avatar.bench.untimed import UNTIMED, WITHOUT_WEIGHTS
from avatar.cli import main
from avatar.commands import batch, bench, compare, worker
from avatar.commands.worker import OF_RANKS
from avatar.errors import AvatarError, BadInput
from avatar.hardware.inventory import Inventory
from avatar.live.chat import CHAT_MODEL, CHAT_URL, chat_address
from avatar.settings import SETTINGS
from tests.commands.surroundings import H200, NO_GPU

VALUES = {int: "2", float: "2.5", bool: "True"}
COMPARE = ["compare", "--image", "p.png", "--audio", "s.wav", "--output", "out"]
TIMED = ["compare", "--random_weights", "--preset", "self-test", "--vary", "shift=1,2", "--output", "out"]
BATCH = ["batch", "jobs.toml", "--output", "out"]
PREVIEW = ["--preset", "cpu-preview"]
COMPOSE = ["compose", "video.mp4", "--output", "out.mp4"]


@pytest.fixture
def here(inputs, machine, monkeypatch):
    """A portrait and speech in the current folder, on a machine without a GPU."""
    for command in (batch, bench, compare, worker):
        monkeypatch.setattr(command, "probe", lambda *_, **__: NO_GPU)
    Path("jobs.toml").write_text(
        '[defaults]\nimage = "p.png"\naudio = "s.wav"\n[[job]]\nname = "a"\npreset = "cpu-preview"\n'
        '[[job]]\nname = "b"\nupscale = "off"\n'
    )
    Path("v.mp4").write_bytes(b"")
    Path("video.mp4").write_bytes(b"")
    return inputs


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ([*BATCH, "--ckpt_dir", "."], "cannot honour ckpt_dir: it uses no"),
        ([*BATCH, "--upscale_with", "cp {input} {output}"], "b: upscale is off"),
        ([*COMPARE, "--vary", "seed=1,2", *PREVIEW, "--ckpt_dir", "."], "cannot honour ckpt_dir"),
        ([*COMPARE, "--vary", "preset=cpu-preview,auto", "--preset", "cpu-preview"], "preset is both fixed"),
        ([*COMPARE, "--vary", "seed=1,2", "--blocks", "9"], "--blocks is for timed runs"),
        ([*COMPARE, "--vary", "seed=1,2", "--clip_frames", "9"], "Leave out --clip_frames"),
        ([*COMPARE, "--vary", "seed=1,2", "--font", "f.ttf", "--no_side_by_side"], "--font is for"),
        (["compare", "v.mp4", "--output", "out", "--preset", "cpu-preview"], "compared as they are"),
        ([*TIMED, "--font", "f.ttf"], "no videos are made"),
        ([*TIMED, "--no_side_by_side"], "no videos are made"),
        ([*TIMED, "--vary", "upscale=off,1080p"], "cannot honour upscale"),
        (["plan", "--preset", "cpu-preview", "--ckpt_dir", "."], "cannot honour ckpt_dir"),
        (["plan", "--gpus", "0", "--vram", "8", "--compute_capability", "8.6"], "--gpus is 0"),
        (["generate", "--image", "p.png", "--audio", "s.wav", "--extend", "#102030"], "extend is #102030"),
        ([*COMPOSE, "--font", "f.ttf"], "without --captions or --text_file"),
        ([*COMPOSE, "--music_db", "-3"], "without --music"),
        ([*COMPOSE, "--duck_db", "-3"], "without --music"),
        ([*COMPOSE, "--still_s", "3"], "without --intro or --outro"),
        ([*COMPOSE, "--still_s", "3", "--intro", "v.mp4"], "--still_s is for pictures"),
        ([*COMPOSE, "--logo_corner", "top-left"], "without --logo"),
        ([*COMPOSE, "--logo_width", "0.1"], "without --logo"),
        ([*COMPOSE, "--picture_corner", "top-left"], "without --picture"),
        ([*COMPOSE, "--picture_width", "0.1"], "without --picture"),
        (["compose", "video.mp4", "--output", "out.gif", "--music", "s.wav"], "A GIF has no sound"),
    ],
    ids=lambda value: " ".join(value)[-40:] if isinstance(value, list) else "",
)
def test_a_flag_without_an_effect_is_refused(line, words, here, capsys):
    assert main(line) == 2
    out = capsys.readouterr()
    assert words in " ".join((out.out + out.err).split())
    assert not list(Path().glob("out*/*"))


def test_a_checkpoint_is_taken_where_one_job_may_read_it(here, monkeypatch, capsys):
    """Also where another job cannot run at all, which its own turn reports."""
    Path("jobs.toml").write_text(
        '[defaults]\nimage = "p.png"\naudio = "s.wav"\n[[job]]\nname = "a"\npreset = "cpu-preview"\n'
        '[[job]]\nname = "b"\npreset = "80gb"\n[[job]]\nname = "c"\npreset = "nonesuch"\n'
    )

    def begin(entries, *_, **__):
        raise AvatarError(f"{', '.join(entry.name for entry in entries)} begin.")

    monkeypatch.setattr(batch, "Batch", begin)
    assert main([*BATCH, "--ckpt_dir", "."]) == AvatarError.exit_code
    assert "a, b, c begin." in capsys.readouterr().err


@pytest.mark.parametrize("name", [*UNTIMED, *WITHOUT_WEIGHTS])
def test_bench_refuses_what_it_cannot_time(name, here, monkeypatch, capsys):
    monkeypatch.setattr(bench, "probe", lambda *_, **__: H200)
    line = ["bench", "--preset", "80gb", *flag(name)]
    assert main([*line, "--random_weights"]) == 2
    assert f"cannot honour {name}: " in capsys.readouterr().out
    if name in UNTIMED:
        assert main(line) == 2
        assert f"cannot honour {name}: " in capsys.readouterr().out


@pytest.mark.parametrize("name", [name for name in SETTINGS if name not in OF_RANKS])
def test_a_worker_refuses_what_belongs_to_a_run(name, here, monkeypatch, capsys):
    monkeypatch.setattr(worker, "probe", lambda *_, **__: Inventory.imagine(4, 80))
    assert main(["worker", "--preset", "4x80gb-realtime", *flag(name)]) == 2
    assert f"{name} belongs to a run" in capsys.readouterr().err


def test_chat_needs_an_address():
    assert chat_address(None, None, {CHAT_MODEL: "m"}) is None  # the environment's waits for an address
    assert chat_address(None, "m", {CHAT_URL: "http://127.0.0.1:1/v1"}).model == "m"
    with pytest.raises(BadInput, match="without --chat-url"):
        chat_address(None, "m", {})


def flag(name: str) -> list[str]:
    one = SETTINGS[name]
    value = one.choices[-1] if one.choices else VALUES.get(one.kind, "64*64")
    return [one.setting.flag or f"--{name}", value]
