"""Rank 0's conducting thread: one for all runs, never waited for in vain, and no error of it is lost."""

from __future__ import annotations

import os
import threading
from dataclasses import replace

import pytest
import torch

from avatar.distributed.coordinator import Coordinator, ParallelDenoiser
from avatar.distributed.process_groups import Group
from avatar.distributed.rank_meter import RankMeter
from avatar.distributed.rendezvous import CHANNELS, limit_channels
from avatar.distributed.wavefront_schedule import WavefrontRun
from avatar.pipeline.flow_match_euler import Schedule
from avatar.pipeline.layer_stack import CompiledPieces
from avatar.pipeline.rollout import rollout
from avatar.planning.layout import Layout
from tests.distributed.streams import conditions, geometry_of

CPU, GEOMETRY = torch.device("cpu"), geometry_of({})
PATIENCE_S = 10.0


@pytest.fixture
def failed() -> list[BaseException]:
    return []


@pytest.fixture
def denoiser(failed: list[BaseException]) -> ParallelDenoiser:
    group = Group.join(Layout("local", decodes_apart=True), 0, CPU, RankMeter(CPU), failed.append)
    conductor = Coordinator(group, None, torch.float32, CompiledPieces())
    return conductor.denoiser(GEOMETRY, Schedule((1.0,), (1.0, 0.0)))


def close(denoiser: ParallelDenoiser) -> None:
    closing = threading.Thread(target=denoiser.close, daemon=True)
    closing.start()
    closing.join(PATIENCE_S)
    assert not closing.is_alive()


def conduct_with(monkeypatch, act) -> None:
    def conduct(run: WavefrontRun) -> None:
        act(run)
        run.begun.set()
        run.over.set()

    monkeypatch.setattr(WavefrontRun, "conduct", conduct)


def test_one_thread_conducts_every_run(denoiser, monkeypatch):
    seen: list[str] = []
    conduct_with(
        monkeypatch, lambda run: seen.append(threading.current_thread().name + str(threading.get_ident()))
    )
    for _ in range(3):
        denoiser.begin(conditions(GEOMETRY))
    close(denoiser)
    assert len(seen) == 3
    assert len(set(seen)) == 1
    assert seen[0].startswith("conductor")


def test_a_run_that_could_not_begin_is_not_waited_for(denoiser):
    """A fault of the GPU shows where its results are fetched."""

    class Faulty:
        def cpu(self) -> None:
            raise RuntimeError("an illegal memory access")

    given = replace(conditions(GEOMETRY), text=Faulty())
    with pytest.raises(RuntimeError, match="illegal"):
        denoiser.begin(given)
    close(denoiser)


def test_an_error_that_nobody_collects_fails_the_rank(denoiser, failed, monkeypatch):
    """The consumer left in the moment in which the run failed."""
    fault = RuntimeError("an illegal memory access")
    conduct_with(monkeypatch, lambda run: run.finished.put(fault))
    denoiser.begin(conditions(GEOMETRY))
    close(denoiser)
    assert failed == [fault]


def test_an_error_that_is_collected_is_raised_once(denoiser, failed, monkeypatch):
    conduct_with(monkeypatch, lambda run: run.finished.put(RuntimeError("lost")))
    denoiser.begin(conditions(GEOMETRY))
    with pytest.raises(RuntimeError, match="lost"):
        denoiser.collect()
    close(denoiser)
    assert failed == []


def test_the_decoder_is_primed_once_the_run_has_begun(denoiser, monkeypatch):
    may_begin, primed = threading.Event(), threading.Event()
    conduct_with(monkeypatch, lambda run: may_begin.wait(PATIENCE_S))
    blocks = rollout(conditions(GEOMETRY), denoiser, num_blocks=1, seed=0, meanwhile=primed.set)
    threading.Thread(target=next, args=(blocks,), daemon=True).start()
    assert not primed.wait(0.3)
    may_begin.set()
    assert primed.wait(PATIENCE_S)
    close(denoiser)


@pytest.mark.parametrize(
    ("layout", "channels"),
    [(Layout("layers", 3), "2"), (Layout("ulysses", 1, 3), "8"), (Layout("layers", 2, 2), "8")],
)
def test_nccl_gets_few_channels_unless_the_environment_says_how_many(layout, channels, monkeypatch):
    monkeypatch.setenv(CHANNELS[0], "16")
    monkeypatch.delenv(CHANNELS[1], raising=False)
    limit_channels(layout)
    found = [os.environ[name] for name in CHANNELS]
    monkeypatch.setenv(CHANNELS[1], "")  # so that it is taken back
    assert found == ["16", channels]
