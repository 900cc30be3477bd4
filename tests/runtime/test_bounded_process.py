"""Functions in bounded processes: each bound, and that the next job does not feel the last."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from avatar.errors import BadInput, Cancelled
from avatar.runtime.bounded_process import FEW_WAITING, BoundedJob, BoundedProcesses, Crowded

MIB = 2**20
KEEP = "import os; os.kept = bytearray(b'1') * 300 * 2**20"


@pytest.fixture
def bounded() -> Iterator[BoundedProcesses]:
    made = BoundedProcesses(300 * MIB, places=2, per_visitor=3)
    yield made
    made.close()


def run(bounded: BoundedProcesses, function, *args, cpu_s: float = 5, visitor: str = "") -> BoundedJob:
    return bounded.submit(function, *args, name="me.jpg", cpu_s=cpu_s, visitor=visitor)


def wait_until(holds) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def held(bounded: BoundedProcesses, visitor: str, tmp_path: Path) -> BoundedJob:
    """A job that has a place, and keeps it."""
    mark = tmp_path / f"began-{visitor}"
    job = run(bounded, os.system, f"touch {mark}; sleep 100", visitor=visitor)
    wait_until(mark.exists)
    return job


def test_a_function_is_called_in_another_process(bounded: BoundedProcesses):
    assert run(bounded, divmod, 7, 2).result() == (3, 1)
    assert run(bounded, os.getpid).result() != os.getpid()


def test_its_refusal_comes_back(bounded: BoundedProcesses, tmp_path: Path):
    from avatar.media.portrait import open_portrait

    job = run(bounded, open_portrait, tmp_path / "absent.png")
    for _ in range(2):
        with pytest.raises(BadInput, match="does not exist"):
            job.result()


def test_memory_is_bounded(bounded: BoundedProcesses):
    with pytest.raises(BadInput, match=r"me\.jpg needs too much memory"):
        run(bounded, bytearray, 400 * MIB).result()
    assert len(run(bounded, bytearray, 10 * MIB).result()) == 10 * MIB


def test_cpu_time_is_bounded(bounded: BoundedProcesses):
    with pytest.raises(BadInput, match=r"me\.jpg takes too long"):
        run(bounded, pow, 3, 10**8, cpu_s=1).result()
    assert run(bounded, pow, 3, 2).result() == 9


def test_time_by_the_clock_is_bounded(bounded: BoundedProcesses):
    with pytest.raises(BadInput, match="takes too long"):
        run(bounded, time.sleep, 100, cpu_s=0.1).result()
    assert run(bounded, pow, 3, 2).result() == 9


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_a_crash_is_the_files_fault_and_not_the_next_ones(bounded: BoundedProcesses, number: signal.Signals):
    with pytest.raises(BadInput, match=r"me\.jpg"):
        run(bounded, signal.raise_signal, number).result()
    assert run(bounded, pow, 3, 2).result() == 9


def test_a_process_that_keeps_much_memory_is_replaced():
    roomy = BoundedProcesses(2**30, places=1)
    before = roomy.submit(os.getpid, name="a", cpu_s=5).result()
    assert roomy.submit(os.getpid, name="a", cpu_s=5).result() == before
    roomy.submit(exec, KEEP, {}, name="a", cpu_s=5).result()
    assert roomy.submit(os.getpid, name="a", cpu_s=5).result() != before
    roomy.close()


def test_one_visitor_has_one_place_and_another_the_next(bounded: BoundedProcesses, tmp_path: Path):
    mine = held(bounded, "a", tmp_path)
    second = run(bounded, pow, 3, 2, visitor="a")
    assert run(bounded, pow, 3, 2, visitor="b").result() == 9, "the other place was free for others"
    assert not second.wait(0)
    mine.cancel()
    assert second.result() == 9


def test_a_cancelled_job_gives_its_place_up(bounded: BoundedProcesses, tmp_path: Path):
    jobs = [held(bounded, visitor, tmp_path) for visitor in "ab"]
    waiting, next_one = run(bounded, pow, 3, 2, visitor="c"), run(bounded, pow, 3, 2, visitor="d")
    waiting.cancel()
    jobs[0].cancel()
    assert next_one.result() == 9
    for job in (jobs[0], waiting):
        with pytest.raises(Cancelled):
            job.result()
    assert not jobs[1].wait(0)


def test_who_waits_with_too_many_is_refused(bounded: BoundedProcesses, tmp_path: Path):
    held(bounded, "a", tmp_path)
    for _ in range(3):
        run(bounded, pow, 3, 2, visitor="a")
    with pytest.raises(Crowded):
        run(bounded, pow, 3, 2, visitor="a")
    held(bounded, "b", tmp_path)
    for number in range(FEW_WAITING - 3):
        run(bounded, pow, 3, 2, visitor=f"more {number}")
    with pytest.raises(Crowded):
        run(bounded, pow, 3, 2, visitor="c")


def test_closing_ends_what_runs_and_what_waits(tmp_path: Path):
    bounded = BoundedProcesses(300 * MIB, places=1)
    jobs = [held(bounded, "a", tmp_path), run(bounded, pow, 3, 2)]
    bounded.close()
    for job in jobs:
        with pytest.raises(Cancelled):
            job.result()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("bounded-")]
