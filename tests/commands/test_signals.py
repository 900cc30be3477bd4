"""What was made is kept under every ending signal, whoever else gets it; nothing is left in /tmp."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import av
import psutil
import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from avatar.commands import batch, generate
from avatar.runtime.engine_process import EngineProcess
def open_engine(*_, **__): return EngineProcess("tests.fixtures.sources:Coloured", frame_s=0.05)
generate.open_engine = batch.open_engine = open_engine
from avatar.cli import main
sys.exit(main(sys.argv[1:]))
"""
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
PREVIEW = ["--preset", "cpu-preview"]


def group(pid: int, number: int) -> None:
    os.killpg(pid, number)


def everyone(pid: int, number: int) -> None:
    """As systemd does: every process of the service, sessions or not."""
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    assert len(family) > 1
    for process in family:
        process.send_signal(number)


def twice(pid: int, number: int) -> None:
    """As `timeout` and closing terminals do."""
    os.kill(pid, number)
    time.sleep(0.05)
    with suppress(ProcessLookupError):
        os.killpg(pid, number)


@pytest.fixture
def scratch(tmp_path):
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


def started(arguments, scratch: Path, **more) -> subprocess.Popen:
    path = f"{ROOT}{os.pathsep}{ROOT / 'tests/fixtures/full_disk'}"
    env = {**os.environ, "PYTHONPATH": path, "TMPDIR": str(scratch)}
    command = [sys.executable, "-c", PROGRAM, *arguments]
    return subprocess.Popen(command, env=env, start_new_session=True, **more)


def interrupted(arguments, scratch: Path, send, number: int, after: str = "segment"):
    """Run a command until an event, then send the signal; its exit code and events."""
    with started([*arguments, "--json"], scratch, stdout=subprocess.PIPE, text=True) as running:
        family: list[psutil.Process] = []
        events = []
        for line in running.stdout:
            events.append(json.loads(line))
            if not family and events[-1]["event"] == after:
                family = psutil.Process(running.pid).children(recursive=True)
                send(running.pid, number)
        code = running.wait(60)
    psutil.wait_procs(family, timeout=10)
    assert not [process for process in family if process.is_running()]
    return code, events


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("send", [group, everyone, twice])
def test_a_signal_to_the_group_keeps_what_was_made(inputs, scratch, send, number):
    code, events = interrupted([*inputs, *PREVIEW, "--output", "out.mp4"], scratch, send, number)
    finished = events[-1]
    assert finished["event"] == "finished"
    assert (finished["stopped"], finished["error"]) == (True, None)
    assert 18 <= finished["num_frames"] < 75
    with av.open("out.mp4") as video:
        assert video.streams.video[0].frames == finished["num_frames"]
    assert code == 128 + number
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_comes_again_after_the_end_changes_nothing(inputs, scratch, number):
    arguments = [*inputs, *PREVIEW, "--output", "out.mp4", "--json"]
    with started(arguments, scratch, stdout=subprocess.PIPE, text=True) as running:
        seen = []
        for line in running.stdout:
            event = json.loads(line)["event"]
            if event == "finished" or (event == "segment" and event not in seen):
                running.send_signal(number)
            seen.append(event)
        code = running.wait(60)
    assert (seen[-1], code) == ("finished", 128 + number)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_to_a_batch_keeps_what_was_made(inputs, scratch, number):
    Path("jobs.csv").write_text(
        "image,audio,preset,name\np.png,s.wav,cpu-preview,a\np.png,s.wav,cpu-preview,b\n"
    )
    code, events = interrupted(["batch", "jobs.csv", "--output", "out"], scratch, group, number)
    outcomes = {event["job"]: event["state"] for event in events if event["event"] == "outcome"}
    assert outcomes == {"a": "stopped", "b": "stopped"}
    with av.open("out/a.mp4") as video:
        assert 18 <= video.streams.video[0].frames < 75
    assert code == 128 + number
    assert list(scratch.iterdir()) == []


def test_a_signal_to_a_film_in_parts_keeps_the_parts(inputs, scratch):
    parts = [*inputs, *PREVIEW, "--output", "out.mp4", "--checkpoint_every", "1"]
    code, events = interrupted(parts, scratch, everyone, signal.SIGHUP, after="partdone")
    assert code == 128 + signal.SIGHUP
    assert (events[-1]["event"], events[-1]["stopped"]) == ("finished", True)
    assert Path("out.mp4").is_file()
    assert Path("out.parts/part_00000.mp4").is_file()
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_at_the_start_ends_it_in_order(inputs, scratch, number):
    code, events = interrupted([*inputs, *PREVIEW, "--output", "out.mp4"], scratch, group, number, "started")
    assert code == 128 + number
    if events[-1]["event"] == "error":  # before the first frame
        assert events[-1]["exit_code"] == 128 + number
        assert not [path for path in Path().iterdir() if path.name.startswith(("out", ".out"))]
    else:
        assert (events[-1]["event"], events[-1]["stopped"]) == ("finished", True)
        assert events[-1]["num_frames"] < 75
    assert list(scratch.iterdir()) == []


def test_a_closed_terminal_keeps_what_was_made(inputs, scratch):
    """The bar's terminal is gone: what is written to it fails from then on."""
    ours, theirs = pty.openpty()
    arguments = [*inputs, *PREVIEW, "--output", "out.mp4"]
    running = started(arguments, scratch, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = b""
    while b"segment 1" not in seen:
        seen += os.read(ours, 4096)
    os.close(ours)
    os.killpg(running.pid, signal.SIGHUP)
    assert running.wait(60) == 128 + signal.SIGHUP
    with av.open("out.mp4") as video:
        assert 18 <= video.streams.video[0].frames < 75
    assert list(scratch.iterdir()) == []


def test_a_hang_up_that_nohup_ignores_stops_nothing(inputs, scratch):
    def nohup() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    arguments = [*inputs, *PREVIEW, "--output", "out.mp4", "--json"]
    with started(arguments, scratch, stdout=subprocess.PIPE, text=True, preexec_fn=nohup) as running:
        for line in running.stdout:
            event = json.loads(line)
            if event["event"] == "segment" and event["index"] == 0:
                os.killpg(running.pid, signal.SIGHUP)
        assert running.wait(60) == 0
    assert (event["event"], event["num_frames"], event["stopped"]) == ("finished", 75, False)


@pytest.mark.slow
def test_a_reader_that_leaves_does_not_end_the_video(inputs, scratch):
    arguments = [*inputs, *PREVIEW, "--output", "out.mp4", "--json"]
    with started(arguments, scratch, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        running.stdout.readline()
        running.stdout.close()
        assert running.wait(60) == 0
        assert running.stderr.read() == ""
    with av.open("out.mp4") as video:
        assert video.streams.video[0].frames == 75


@pytest.mark.slow
def test_the_engine_goes_when_its_parent_is_killed(inputs, scratch):
    arguments = [*inputs, *PREVIEW, "--output", "out.mp4", "--json"]
    with started(arguments, scratch, stdout=subprocess.PIPE, text=True) as running:
        for line in running.stdout:
            if json.loads(line)["event"] == "segment":
                family = psutil.Process(running.pid).children(recursive=True)
                running.kill()
    assert len(family) == 1
    assert psutil.wait_procs(family, timeout=10)[1] == []
