"""An engine in a child process: events cross over, and nothing that happens there harms the parent."""

from __future__ import annotations

import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
import soundfile
from PIL import Image

from avatar.errors import AvatarError, Cancelled, WorkerLost
from avatar.events import Finished, Segment
from avatar.media.intake import open_request
from avatar.media.side_files import report_path
from avatar.preset import Preset
from avatar.request import Request
from avatar.runtime import engine_process as worker
from avatar.runtime import stream
from avatar.runtime.engine_process import EngineProcess
from avatar.runtime.report import read_report
from tests.fixtures.sources import PINNED_BYTES

NUM_KILLS = int(os.environ.get("AVATAR_TEST_KILLS", "4"))
PATIENCE_S = 30.0
SOURCE = "tests.fixtures.sources:Coloured"
PRESET = Preset("test", "Test", "For tests", "preview")


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    Image.fromarray(np.full((96, 96, 3), 90, np.uint8)).save(tmp_path / "p.png")
    tone = np.sin(np.arange(48_000 * 6) * 0.05).astype(np.float32) * 0.3
    soundfile.write(tmp_path / "s.wav", tone, 48_000)
    work = tmp_path / "work"
    work.mkdir()
    return open_request(
        tmp_path / "p.png", tmp_path / "s.wav", PRESET, output=tmp_path / "out.mp4", work=work
    )


@pytest.fixture
def engine(request):
    """EngineProcess over Coloured, with the options that the test's parameters give."""
    engines = []

    def build(**options):
        engines.append(EngineProcess(SOURCE, **options))
        return engines[-1]

    yield build
    for one in engines:
        one.close()


def collect(stream, events: list) -> None:
    """What comes before an error is kept as well."""
    for event in stream:
        events.append(event)


def until(holds: Callable[[], object], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def frames_of(video: Path) -> int:
    with av.open(str(video)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_events_cross_over_and_the_child_stays_warm(engine, request_):
    one = engine()
    pids = set()
    for _ in range(3):
        events = list(one.stream(request_))
        finished = events[-1]
        assert isinstance(finished, Finished)
        assert not finished.stopped
        assert frames_of(finished.video) == request_.num_frames == 150
        assert sum(e.num_frames for e in events if isinstance(e, Segment)) == 150
        pids.add(one.pid)
    assert len(pids) == 1
    assert one.label == "coloured"


def test_the_report_tells_plan_and_memory_of_its_own_run(engine, request_):
    one = engine()
    assert one.pinned_bytes == 0, "there is no process yet"
    finished = list(one.stream(request_))[-1]
    report = read_report(finished.report)
    assert report.plan["engine"] == "preview"
    assert report.plan["host"]["peak_bytes"] > 0
    resident = psutil.Process(one.pid).memory_info().rss
    assert resident / 3 < report.memory.host_peak_bytes < 3 * resident
    assert report.memory.pinned_peak_bytes == PINNED_BYTES
    assert report.first_frame_s > 0
    assert report.frames_per_s > 0
    assert (report.out_of_memory, report.error_kind) == (False, None)


@pytest.mark.slow
def test_the_report_of_a_killed_run_has_what_its_heartbeats_reported(engine, request_):
    one = engine(fault="kill", at=100, frame_s=0.03)
    events = []
    with pytest.raises(WorkerLost):
        collect(one.stream(request_), events)
    report = read_report(events[-1].report)
    assert (report.error_kind, report.out_of_memory) == ("WorkerLost", None)
    assert report.plan["engine"] == "preview"
    assert report.memory.pinned_peak_bytes == PINNED_BYTES
    assert report.memory.host_peak_bytes > 10 * 2**20
    assert 0 < report.first_frame_s < report.elapsed_s
    assert report.frames_per_s > 0
    assert one.pinned_bytes == 0, "its process is gone"


@pytest.mark.slow
def test_pinned_memory_is_reported_while_a_run_goes_on(engine, request_):
    one = engine(frame_s=0.03)
    reported = {one.pinned_bytes for _ in one.stream(request_)}
    assert reported <= {None, PINNED_BYTES}
    assert one.pinned_bytes == PINNED_BYTES


def test_cancel_leaves_a_finished_file_and_a_usable_engine(engine, request_):
    one = engine(frame_s=0.02)
    events = []
    for event in one.stream(request_):
        events.append(event)
        if isinstance(event, Segment):
            one.cancel()
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert finished.stopped
    assert finished.error is None
    assert 0 < finished.num_frames < 150
    assert frames_of(finished.video) == finished.num_frames
    one.cancel()  # nothing runs: nothing happens, now or to the next run
    stream = one.stream(request_)
    assert next(e for e in stream if isinstance(e, Segment)).index == 0
    stream.close()


def test_cancel_before_the_first_frame_raises_cancelled(engine, request_):
    one = engine(fault="deaf", at=0)
    stream = one.stream(request_)
    next(stream)
    worker_limit = worker.CANCEL_LIMIT_S
    worker.CANCEL_LIMIT_S = 1.0
    try:
        one.cancel()
        with pytest.raises((Cancelled, WorkerLost)):
            list(stream)
    finally:
        worker.CANCEL_LIMIT_S = worker_limit


def test_closing_the_iterator_frees_the_engine_for_the_next_run(engine, request_):
    one = engine(frame_s=0.02)
    stream = one.stream(request_)
    next(e for e in stream if isinstance(e, Segment))
    stream.close()
    assert next(e for e in one.stream(request_) if isinstance(e, Segment)).index == 0


def test_a_second_run_at_the_same_time_is_refused(engine, request_):
    one = engine(frame_s=0.02)
    stream = one.stream(request_)
    next(stream)
    with pytest.raises(AvatarError, match="busy"):
        next(one.stream(request_))
    stream.close()


@pytest.mark.parametrize(
    ("fault", "at", "error", "words"),
    [
        ("error", 60, AvatarError, "The lamp went out. Light it."),
        ("bug", 60, AvatarError, "failed"),
        ("exit", 100, WorkerLost, "exited with 3"),
        ("kill", 100, WorkerLost, "killed by SIGKILL"),
    ],
)
def test_what_was_shown_is_kept_when_a_run_fails(engine, request_, fault, at, error, words):
    one = engine(fault=fault, at=at, frame_s=0.01)
    events = []
    with pytest.raises(error, match=words) as caught:
        collect(one.stream(request_), events)
    assert "secret" not in str(caught.value)
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert finished.stopped
    assert finished.error
    shown = sum(e.num_frames for e in events if isinstance(e, Segment))
    assert 25 <= shown <= frames_of(finished.video) == finished.num_frames <= at


def test_a_silent_child_is_taken_for_hung_and_replaced(engine, request_, monkeypatch):
    monkeypatch.setattr(worker, "SILENCE_LIMIT_S", 3.0)
    one = engine(fault="stop", at=0)
    with pytest.raises(WorkerLost, match="no sign of life"):
        list(one.stream(request_))
    assert one.pid is None
    one.warm()
    assert one.pid is not None


def test_a_source_that_cannot_be_built_is_reported(engine, request_):
    with pytest.raises(WorkerLost, match="exited with 1"):
        list(engine(fault="construct").stream(request_))


def test_the_child_dies_with_its_parent(tmp_path):
    code = (
        "import sys, time; from avatar.runtime.engine_process import EngineProcess\n"
        f"e = EngineProcess({SOURCE!r}); e.warm(); print(e.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=os.environ)
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    gone, alive = psutil.wait_procs([child], timeout=10)
    assert gone
    assert not alive


def test_close_during_a_run_ends_it(engine, request_):
    one = engine(frame_s=0.05)
    stream = one.stream(request_)
    next(stream)
    threading.Timer(0.5, one.close).start()
    start = time.monotonic()
    with pytest.raises(WorkerLost):
        list(stream)
    assert time.monotonic() - start < 30


def test_stop_beside_a_kill_neither_hangs_nor_raises(engine, request_):
    """Whichever comes first, by however little: the run ends, and the next one is made."""
    one, chance = engine(frame_s=0.004), random.Random(1)
    for _ in range(NUM_KILLS):
        events: list = []
        errors: list[BaseException] = []

        def run(events=events, errors=errors) -> None:
            try:
                collect(one.stream(request_), events)
            except (WorkerLost, Cancelled) as error:
                errors.append(error)

        running = threading.Thread(target=run, daemon=True)
        running.start()
        until(lambda: one.pid, "it has been started")
        time.sleep(chance.uniform(0.0, 1.0))
        waits = chance.uniform(0.0, 0.03)
        killing = threading.Timer(chance.uniform(0.0, 0.03), os.kill, (one.pid, signal.SIGKILL))
        stopping = threading.Timer(waits, one.cancel)
        for thread in (killing, stopping):
            thread.daemon = True
            thread.start()
        for thread in (stopping, running, killing):
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
        shown = sum(event.num_frames for event in events if isinstance(event, Segment))
        if shown:
            assert isinstance(events[-1], Finished)
            assert frames_of(events[-1].video) >= shown
        else:
            assert errors
    assert frames_of(list(one.stream(request_))[-1].video) == 150


def test_cancel_while_a_lost_run_is_salvaged(engine, request_, monkeypatch):
    one, salvage = engine(fault="kill", at=100), stream.finish_from_segments

    def salvage_and_cancel(*arguments, **options):
        one.cancel()
        return salvage(*arguments, **options)

    monkeypatch.setattr(stream, "finish_from_segments", salvage_and_cancel)
    events: list = []
    with pytest.raises(WorkerLost, match="killed by SIGKILL"):
        collect(one.stream(request_), events)
    assert isinstance(events[-1], Finished)


def test_cancel_before_the_child_is_asked_for_a_run(engine, request_, monkeypatch):
    one = engine(frame_s=0.02)
    start = one._started

    def cancel_and_start():
        one.cancel()
        return start()

    monkeypatch.setattr(one, "_started", cancel_and_start)
    events: list = []
    with pytest.raises(Cancelled):
        collect(one.stream(request_), events)
    assert not [event for event in events if isinstance(event, Segment)]


@pytest.mark.slow
def test_heartbeats_of_an_idle_child_are_read(engine, request_):
    one = engine(grows=True)
    list(one.stream(request_))
    for _ in range(3):
        before = one.pinned_bytes or 0
        until(lambda before=before: (one.pinned_bytes or 0) > before, "the next heartbeat")


def test_a_child_that_cannot_be_started_is_reported(engine, request_, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(WorkerLost, match="cannot be started"):
        list(engine().stream(request_))


PARENT = f"""
import pickle, sys
from avatar.events import Segment
from avatar.runtime.engine_process import EngineProcess
engine = EngineProcess({SOURCE!r}, frame_s=0.02)
for event in engine.stream(pickle.load(open(sys.argv[1], "rb"))):
    print(engine.pid, event.num_frames if isinstance(event, Segment) else 0, flush=True)
"""


def test_what_a_killed_parent_was_shown_is_kept(request_, tmp_path):
    (tmp_path / "request").write_bytes(pickle.dumps(request_))
    command = [sys.executable, "-c", PARENT, str(tmp_path / "request")]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    shown = 0
    while shown < 30:
        pid, num_frames = parent.stdout.readline().split()
        shown += int(num_frames)
    child = psutil.Process(int(pid))
    parent.kill()
    parent.wait()
    gone, _ = psutil.wait_procs([child], timeout=PATIENCE_S)
    assert gone
    report = read_report(report_path(request_.output))
    assert report.stopped
    assert shown <= frames_of(request_.output) == report.num_frames < 150
