"""Ranks as the engine sees them: warm between runs; when one is lost the run ends by name, and all go."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import psutil
import pytest

from avatar.errors import AvatarError, Cancelled, DoesNotFit, WorkerLost
from avatar.events import Finished, Notice, Progress, Segment
from avatar.geometry import Size
from avatar.hardware.fast_paths import FAST_PATHS
from avatar.media.intake import open_request
from avatar.media.sample_inputs import write_sample
from avatar.preset import Preset, load_preset
from avatar.request import Request
from avatar.runtime.engine_process import EngineProcess
from avatar.runtime.local_ranks import Limits
from avatar.runtime.protocol import Pulse
from avatar.runtime.ranked_source import RankedSource, SlowPaths

ROLES = "tests.fixtures.roles"
LIMITS = Limits(silence_s=3.0, start_s=90.0, stall_s=4.0, first_factor=1.0)
SOURCE = "avatar.runtime.ranked_source:RankedSource"
BATCHES = 10  # of 5 frames, in a request of 2 s


def preset_of(num_ranks: int) -> Preset:
    return load_preset("self-test").with_settings(layout="ulysses", num_gpus_dit=num_ranks)


@pytest.fixture(autouse=True)
def few_threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def ask(tmp_path: Path) -> Callable[..., Request]:
    def build(prompt: str = "", num_ranks: int = 2, seconds: float = 2.0) -> Request:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        sample = write_sample(folder, Size(96, 96), seconds)
        return open_request(
            *sample,
            preset_of(num_ranks),
            output=folder / "out.mp4",
            work=folder / "work",
            prompt=prompt,
            segment_s=0.4,
        )

    return build


@pytest.fixture(scope="module")
def pair() -> Iterator[RankedSource]:
    """Two ranks; tests may lose them, others are started for the next one."""
    source = RankedSource(preset_of(2), roles=ROLES, limits=LIMITS)
    yield source
    source.close()


def make(source: RankedSource, request: Request, cancelled=lambda: False) -> list[np.ndarray]:
    return [item for item in source.frames(request, cancelled) if isinstance(item, np.ndarray)]


def gather(items: Iterator[object], made: list[np.ndarray]) -> None:
    """Batches as they come, so that those before an error are kept."""
    made.extend(item for item in items if isinstance(item, np.ndarray))


def pids(source: RankedSource) -> list[int]:
    return [child.pid for child in source.ranks.children]


def gone(pids: list[int]) -> bool:
    return not any(psutil.pid_exists(pid) for pid in pids)


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_every_rank_has_a_share_and_all_stay_warm(ask, num_ranks):
    source = RankedSource(preset_of(num_ranks), roles=ROLES, limits=LIMITS)
    try:
        first = make(source, ask(num_ranks=num_ranks))
        before = pids(source)
        assert len(before) == num_ranks
        assert [int(batch[0, 0, 0, 0]) for batch in first] == [
            10 * num_ranks * (num_ranks + 1) // 2 + number for number in range(BATCHES)
        ]
        assert np.array_equal(np.concatenate(make(source, ask(num_ranks=num_ranks))), np.concatenate(first))
        assert pids(source) == before
    finally:
        source.close()
    assert gone(before)


@pytest.mark.slow
def test_what_another_rank_lacks_is_announced_once(ask):
    """Rank 0 may only decode: then the others find out what their devices lack."""
    source = RankedSource(preset_of(2), roles=ROLES, limits=LIMITS)
    try:
        for prompt in ("lack 1 at 1", ""):  # and again in the next run, by what is known
            items = source.frames(ask(prompt, seconds=12.0), lambda: False)
            notices = [item for item in items if isinstance(item, Notice)]
            assert [notice.code for notice in notices] == ["slow_cudnn"]
            assert notices[0].text == FAST_PATHS["cudnn"]
    finally:
        source.close()


def test_a_notice_of_two_ranks_is_given_once():
    slow = SlowPaths()
    own, other = Notice("slow_fp8", "Mine."), Pulse(1, missing=("fp8", "cudnn", "of a later version"))
    assert list(slow.of_pulse(Pulse(0, missing=("int8",)))) == []  # rank 0 gives its own as events
    assert list(slow.of_event(own)) == [own]
    assert [notice.code for notice in slow.of_pulse(other)] == ["slow_cudnn"]
    assert list(slow.of_pulse(other)) == list(slow.of_event(own)) == []
    assert list(slow.of_event(Notice("restarted", "…"))) != []


def until(holds: Callable[[], object], what: str) -> None:
    end = time.monotonic() + 30.0
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.05)


@pytest.mark.slow
def test_heartbeats_of_idle_ranks_are_read(pair, ask):
    make(pair, ask())
    for _ in range(3):
        before = [pulse.at_s for pulse in pair.ranks.last_pulses]
        until(
            lambda before=before: all(
                pulse.at_s > at_s for pulse, at_s in zip(pair.ranks.last_pulses, before, strict=True)
            ),
            "every rank's next heartbeat",
        )


@pytest.mark.slow
def test_a_rank_lost_while_idle_is_seen_before_the_next_run(pair, ask):
    make(pair, ask())
    before = pids(pair)
    psutil.Process(before[1]).kill()
    until(lambda: gone(before), "the loss is seen, and all are ended")
    assert len(make(pair, ask())) == BATCHES


def test_ranks_of_this_machine_listen_to_it_alone(pair, ask):
    make(pair, ask())
    lines = [line for pid in pids(pair) for line in psutil.Process(pid).net_connections()]
    open_at = {line.laddr.ip for line in lines if line.status == "LISTEN"}
    assert open_at == {"127.0.0.1"}


@pytest.mark.slow
@pytest.mark.parametrize("asked", [RankedSource.plan_for, make])
def test_a_run_is_stopped_while_the_ranks_are_starting(ask, asked):
    source = RankedSource(preset_of(2), roles=ROLES, limits=LIMITS)
    try:
        before, looks = pids(source), iter([False, True])
        with pytest.raises(Cancelled):
            asked(source, ask(), lambda: next(looks))
        assert gone(before), "they would have heard of it seconds later"
        assert len(make(source, ask())) == BATCHES
    finally:
        source.close()


def test_ranks_tell_their_part_and_their_load(pair, ask):
    last = ()
    for item in pair.frames(ask(seconds=12.0), lambda: False):
        last = item.ranks if isinstance(item, Progress) and item.ranks else last
    assert [rank.rank for rank in last] == [0, 1]
    assert [rank.role for rank in last] == ["front", "helper 1"]
    assert {rank.place for rank in last} == {"CPU"}
    assert all(0 < rank.busy_percent <= 100 for rank in last)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_killed_again_before_the_first_frame_is_named(pair, ask, rank):
    make(pair, ask(seconds=0.2))
    before = pids(pair)
    with pytest.raises(WorkerLost, match=f"Rank {rank} .*was killed by SIGKILL"):
        make(pair, ask(f"kill {rank} at 0"))
    assert gone(before)
    assert len(make(pair, ask(seconds=0.2))) == 1
    assert not set(before) & set(pids(pair))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("kill 1 at 8", r"Rank 1 \(.*CPU\) was killed by SIGKILL"),
        ("kill 0 at 9", r"Rank 0 \(.*CPU\) was killed by SIGKILL"),
        ("stop 1 at 8", r"Rank 1 \(.*CPU\) gave no sign of life for 3 s"),
        ("stop 0 at 8", r"Rank 0 \(.*CPU\) gave no sign of life for 3 s"),
        ("wait 1 at 8", r"no progress for 4 s; Rank 1 .* is the furthest behind"),
        ("exit 1 at 8", r"Rank 1 \(.*CPU\) exited with 3"),
    ],
)
def test_a_rank_is_lost_and_fresh_ones_go_on(pair, ask, fault, words):
    make(pair, ask(seconds=0.2))
    before, at = pids(pair), int(fault.split()[-1])
    items = list(pair.frames(ask(fault), lambda: False))
    shown = [int(item[0, 0, 0, 0]) for item in items if isinstance(item, np.ndarray)]
    first = shown.index(30, 1)  # where fresh ones went on: what a killed process had not sent is made again
    assert at - 3 <= first <= at
    assert shown == [*range(30, 30 + first), *range(30, 30 + BATCHES - first)]
    (notice,) = [item for item in items if isinstance(item, Notice)]
    assert (notice.code, notice.level) == ("restarted", "warning")
    assert re.search(words, notice.text)
    place = next(index for index, item in enumerate(items) if item is notice)
    assert sum(isinstance(item, np.ndarray) for item in items[:place]) == first
    assert gone(before)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        ("full 1 at 3", DoesNotFit, r"CPU \(rank 1\) ran out of memory, and the preset allows no further"),
        ("full 0 at 3", DoesNotFit, r"CPU \(rank 0\) ran out of memory, and the preset allows no further"),
        ("hold 1 at 3", DoesNotFit, "Rank 1 is too small. Make it larger."),
        ("bug 1 at 3", AvatarError, "Rank 1 failed"),
        ("bug 0 at 3", AvatarError, "Rank 0 failed"),
    ],
)
def test_what_would_happen_again_ends_the_run_by_name(pair, ask, fault, error, words):
    make(pair, ask(seconds=0.2))
    before = pids(pair)
    with pytest.raises(error, match=words) as caught:
        make(pair, ask(fault))
    assert "secret" not in str(caught.value)
    assert gone(before)


def test_ranks_that_die_between_runs_are_replaced(pair, ask):
    make(pair, ask(seconds=0.2))
    before = pids(pair)
    psutil.Process(before[1]).kill()
    psutil.wait_procs([psutil.Process(before[1])], timeout=5)
    assert len(make(pair, ask())) == BATCHES
    assert gone(before)


@pytest.mark.parametrize("after", [0, 1, 5])
def test_cancel_frees_the_ranks_for_the_next_run(pair, ask, after):
    make(pair, ask(seconds=0.2))
    before, made = pids(pair), []
    with pytest.raises(Cancelled):
        gather(pair.frames(ask(seconds=20.0), lambda: len(made) >= after), made)
    assert after <= len(made) <= after + 2
    assert len(make(pair, ask())) == BATCHES
    assert pids(pair) == before


def test_a_consumer_that_leaves_cancels_the_run(pair, ask):
    stream = pair.frames(ask(seconds=20.0), lambda: False)
    next(item for item in stream if isinstance(item, np.ndarray))
    before = pids(pair)
    stream.close()
    assert len(make(pair, ask())) == BATCHES
    assert pids(pair) == before


def test_ranks_that_do_not_stop_are_ended(pair, ask, monkeypatch):
    monkeypatch.setattr("avatar.runtime.ranked_source.CANCEL_LIMIT_S", 1.0)
    made = []
    with pytest.raises(Cancelled):
        gather(pair.frames(ask("wait 0 at 1"), lambda: bool(made)), made)
    assert gone(pids(pair))


@pytest.mark.slow
def test_ten_runs_in_a_row_do_not_grow(pair, ask):
    def resident() -> int:
        return sum(psutil.Process(pid).memory_info().rss for pid in pids(pair))

    make(pair, ask())
    make(pair, ask())
    before, ids = resident(), pids(pair)
    for _ in range(10):
        make(pair, ask())
    assert pids(pair) == ids
    assert resident() - before < 8 * 2**20


def test_what_was_made_is_kept_when_a_rank_fails(ask):
    engine = EngineProcess(SOURCE, preset=preset_of(2), roles=ROLES, limits=LIMITS)
    try:
        stream, events = engine.stream(ask("bug 1 at 8")), []
        with pytest.raises(AvatarError, match="Rank 1 failed"):
            events.extend(stream)
        child = engine.pid
        (finished,) = [event for event in events if isinstance(event, Finished)]
        assert finished.stopped
        assert "Rank 1" in finished.error
        with av.open(str(finished.video)) as video:
            assert sum(1 for _ in video.decode(video=0)) == finished.num_frames == 8 * 5
        assert sum(event.num_frames for event in events if isinstance(event, Segment)) == 8 * 5
        (*_, finished) = engine.stream(ask())
        assert not finished.stopped
        assert engine.pid == child  # the engine's process has outlived its ranks
    finally:
        engine.close()


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["page", "engine"])
def test_ranks_die_with_those_who_started_them(victim):
    code = (
        "import sys, time, psutil\n"
        "from avatar.runtime.engine_process import EngineProcess; from avatar.preset import load_preset\n"
        "preset = load_preset('self-test').with_settings(layout='ulysses', num_gpus_dit=2)\n"
        f"e = EngineProcess({SOURCE!r}, preset=preset, roles={ROLES!r}); e.warm()\n"
        "child = psutil.Process(e.pid)\n"
        "while len(child.children()) < 2: time.sleep(0.1)\n"
        "print(e.pid, *[c.pid for c in child.children()], flush=True); time.sleep(60)"
    )
    page = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=os.environ)
    engine, *ranks = (psutil.Process(int(pid)) for pid in page.stdout.readline().split())
    time.sleep(3)  # until the ranks are under way
    (psutil.Process(page.pid) if victim == "page" else engine).kill()
    _, alive = psutil.wait_procs(ranks, timeout=10)
    page.kill()
    page.wait()
    assert len(ranks) == 2
    assert alive == []
