"""A disk that is full, or gone, at the last step: what is made is kept, and its place is named.

The disk is a tmpfs of a few hundred MB that fills up while the video is made.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import av
import pytest
import soundfile

from avatar.cli import main
from avatar.commands import generate as generate_command
from avatar.media import atomic
from tests.commands.surroundings import NO_GPU, lines
from tests.commands.test_signals import started
from tests.fixtures.sources import Coloured
from tests.long.runs import Here

PREVIEW = ["--preset", "cpu-preview"]
DISK_MB = 400


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """A small disk of its own; without the right to mount one, a folder that fixtures/full_disk fills."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", folder]
    mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    if not mounted:
        monkeypatch.setenv("AVATAR_TEST_DISK", str(folder))
    yield folder
    if mounted:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """Where temporary files go."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def fill(folder: Path) -> None:
    """Leave no room at all."""
    with (folder / "filler").open("wb", buffering=0) as file:
        if os.path.ismount(folder):
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(folder).free)
            assert shutil.disk_usage(folder).free == 0


def num_frames(path: Path) -> int:
    with av.open(str(path)) as video:
        return sum(1 for _ in video.decode(video=0))


def run_until_full(arguments: list[str], scratch: Path, disk: Path, spoil, after: str = "segment"):
    """Run a command and spoil the disk after an event; exit code, events, standard error."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with started([*arguments, "--json"], scratch, **pipes) as running:
        events = []
        for line in running.stdout:
            events.append(json.loads(line))
            if [event["event"] for event in events].count(after) == 1 and events[-1]["event"] == after:
                spoil(disk)
        return running.wait(60), events, running.stderr.read()


def kept_places(text: str) -> list[Path]:
    return [Path(place) for place in re.findall(r"/\S+\.mp4", text)]


def test_a_disk_that_fills_up_costs_no_frame(inputs, scratch, disk):
    arguments = [*inputs, *PREVIEW, "--output", str(disk / "out.mp4")]
    code, events, stderr = run_until_full(arguments, scratch, disk, fill)
    error = events[-1]
    assert (code, error["event"], error["exit_code"]) == (1, "error", 1)
    assert "No space left on device" in error["message"]
    assert "Traceback" not in stderr
    (place,) = kept_places(error["remedy"])
    assert (place.name, num_frames(place)) == ("out.mp4", 75)
    assert [path.name for path in scratch.iterdir()] == [place.parent.name], "nothing else is left"
    assert sorted(path.name for path in disk.iterdir()) == ["filler"]


@pytest.mark.slow
def test_a_folder_that_goes_away_costs_no_frame(inputs, scratch, tmp_path):
    share = tmp_path / "share"
    arguments = [*inputs, *PREVIEW, "--output", str(share / "out.mp4")]
    code, events, stderr = run_until_full(arguments, scratch, share, shutil.rmtree)
    assert code == 1
    assert "Traceback" not in stderr
    (place,) = kept_places(events[-1]["remedy"])
    assert num_frames(place) == 75


@pytest.mark.slow
def test_a_video_of_a_batch_is_kept_as_well(inputs, scratch, disk):
    Path("jobs.csv").write_text("image,audio,preset,name\np.png,s.wav,cpu-preview,a\n")
    arguments = ["batch", "jobs.csv", "--output", str(disk)]
    code, events, stderr = run_until_full(arguments, scratch, disk, fill)
    outcome = events[-1]
    assert (code, outcome["event"], outcome["state"]) == (1, "outcome", "failed")
    assert "Traceback" not in stderr
    (place,) = kept_places(outcome["error"])
    assert (place.name, num_frames(place)) == ("a.mp4", 75)


@pytest.mark.slow
def test_parts_stay_and_the_last_one_is_kept(inputs, scratch, disk):
    output = disk / "out.mp4"
    arguments = [*inputs, *PREVIEW, "--output", str(output), "--checkpoint_every", "1"]
    code, events, stderr = run_until_full(arguments, scratch, disk, fill, after="partdone")
    assert code == 1
    assert "Traceback" not in stderr
    error = events[-1]
    assert "1 of 3 parts are kept: resume" in error["remedy"]
    (place,) = kept_places(error["remedy"])
    assert (place.name, num_frames(place)) == ("part_00001.mp4", 25)
    assert num_frames(disk / "out.parts" / "part_00000.mp4") == 25
    (disk / "filler").unlink()
    with started([*arguments, "--resume"], scratch) as again:
        assert again.wait(60) == 0
    assert num_frames(output) == 75


@pytest.fixture
def full(monkeypatch):
    """No output can be put in its place."""

    def replace(path: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic, "replace", replace)


def test_a_composed_video_is_kept_and_its_place_is_named(inputs, scratch, full, capsys):
    with av.open("made.mp4", "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width = stream.height = 64
        for _ in range(25):
            out.mux(stream.encode(av.VideoFrame(64, 64, "yuv420p")))
        out.mux(stream.encode(None))
    assert main(["compose", "made.mp4", "--logo", "p.png", "--output", "composed.mp4"]) == 1
    (place,) = kept_places(capsys.readouterr().err)
    assert (place.name, num_frames(place)) == ("composed.mp4", 25)
    assert [path.name for path in scratch.iterdir()] == [place.parent.name], "nothing else is left"
    assert not Path("composed.mp4").exists()


def test_a_spoken_text_is_kept_and_its_place_is_named(inputs, scratch, full, capsys):
    assert main(["speak", "--text", "Hello there.", "--output", "said.wav"]) == 1
    reported = capsys.readouterr().err
    assert "said.wav cannot be written (No space left on device)" in reported
    (place,) = (Path(place) for place in re.findall(r"/\S+\.wav", reported))
    assert soundfile.info(place).duration > 0.5
    assert [path.name for path in scratch.iterdir()] == [place.parent.name], "nothing else is left"


@pytest.mark.parametrize("name", ["out.thumb.jpg", "out.report.json"])
def test_a_report_without_room_is_reported_after_the_video(
    inputs, machine, engine, monkeypatch, capsys, name
):
    engine()
    replaced = atomic.replace

    def full(path: Path, target: Path) -> None:
        if target.name == name:
            raise OSError(28, "No space left on device")
        replaced(path, target)

    monkeypatch.setattr(atomic, "replace", full)
    monkeypatch.setattr(generate_command, "open_engine", lambda *_, **__: Here(Coloured()))
    assert main([*inputs, "--output", "out.mp4", "--json"]) == 1
    finished, error = lines(capsys)[-2:]
    assert (finished["event"], finished["num_frames"], finished["stopped"]) == ("finished", 75, False)
    assert "its report cannot be written (No space left on device)" in error["message"]
    assert num_frames(Path("out.mp4")) == 75


def test_figures_are_reported_when_their_file_cannot_be_written(tmp_path, monkeypatch, capsys):
    def full(path: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic, "replace", full)
    monkeypatch.setattr("avatar.commands.bench.probe", lambda *_, **__: NO_GPU)
    monkeypatch.setattr("avatar.commands.bench._figures", lambda *_: {"fps": 25.0})
    command = ["bench", "--preset", "self-test", "--output", str(tmp_path / "figures.json")]
    assert main(command) == 1
    figures, error = lines(capsys)
    assert figures["fps"] == 25.0
    assert "figures.json cannot be written" in error["message"]
    assert list(tmp_path.iterdir()) == []
