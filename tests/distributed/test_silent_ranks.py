"""How long a rank may be silent: as long as its own steps ask for."""

from __future__ import annotations

import time

import pytest
import torch

from avatar.distributed.rank_meter import NUM_STEPS, RankMeter
from avatar.errors import WorkerLost
from avatar.preset import load_preset
from avatar.runtime.local_ranks import Limits, SupervisedRanks
from avatar.runtime.protocol import MadeFrames, Pulse

LIMITS = Limits(silence_s=30.0, start_s=600.0, stall_s=120.0)


class Quiet(SupervisedRanks):
    """Ranks that say what a test has them say."""

    links, alive = (), True

    def end(self) -> None:
        self.ended = True

    def fate_of(self, link):
        return 0, "left"


def lost_after(step_s: float | None, silent_s: float, *, making: bool = False) -> str:
    """What is said of a rank that has been silent for so long, "" while it may be."""
    ranks = Quiet(load_preset("80gb"), LIMITS)
    ranks._take(Pulse(0, "all layers", "GPU 0", 1, step_s=step_s))
    if making:
        ranks._take(MadeFrames(1, torch.zeros(1).numpy()))
    now = time.monotonic() + silent_s
    if making:  # it beats, and nothing moves
        ranks._heard[0] = now
    try:
        ranks._check(now, 0.0)
    except WorkerLost as error:
        return error.message
    return ""


@pytest.mark.parametrize(
    ("step_s", "limit_s"),
    [(0.2, 30), (2.9, 30), (12.0, 120), (45.0, 450), (None, 120)],
)
def test_a_rank_may_be_silent_for_ten_of_its_steps(step_s, limit_s):
    assert lost_after(step_s, limit_s - 1) == ""
    assert f"gave no sign of life for {limit_s} s" in lost_after(step_s, limit_s + 1)


@pytest.mark.parametrize(("step_s", "limit_s"), [(0.2, 120), (20.0, 200)])
def test_ranks_may_stand_still_for_ten_of_their_steps(step_s, limit_s):
    assert lost_after(step_s, limit_s - 1, making=True) == ""
    assert f"no progress for {limit_s} s" in lost_after(step_s, limit_s + 1, making=True)


def test_steps_are_measured_between_their_ends(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    meter = RankMeter(torch.device("cpu"))
    assert meter.step_s is None
    meter.step()
    assert meter.step_s is None
    for seconds in (40.0, 2.0, 3.0):  # the first builds graphs
        clock[0] += seconds
        meter.step()
    assert meter.step_s == 40.0
    for _ in range(NUM_STEPS):
        clock[0] += 2.0
        meter.step()
    assert meter.step_s == 2.0
    meter.pause()
    clock[0] += 1000.0  # between two runs
    meter.step()
    assert meter.step_s == 2.0
    assert meter.ticks == NUM_STEPS + 5


def test_a_stages_own_work_is_its_step():
    meter = RankMeter(torch.device("cpu"))
    with meter.working():
        time.sleep(0.01)
    assert meter.step_s >= 0.01
