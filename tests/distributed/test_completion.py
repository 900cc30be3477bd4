"""A device's fault is reported at once, also when nothing follows that could raise it."""

from __future__ import annotations

import queue

import pytest
import torch

from avatar.distributed.completion import Completions
from avatar.distributed.p2p import Done

GPU = torch.device("cuda", 0)


@pytest.fixture
def device(monkeypatch) -> dict[str, BaseException | None]:
    """An imagined GPU, whose events raise what "fault" holds."""
    state: dict[str, BaseException | None] = {"fault": None}

    class Event:
        def __init__(self, blocking: bool) -> None:
            pass

        def record(self, stream: object) -> None:
            pass

        def synchronize(self) -> None:
            if state["fault"] is not None:
                raise state["fault"]

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    return state


def test_a_fault_at_the_last_item_is_reported_and_kept(device):
    answered: list[Done] = []
    failed: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
    answers = Completions(GPU, answered.append, failed.put)
    for step in range(2):
        answers.wait()
        answers.mark(Done(0, step, None))
    answers.settle()
    assert [done.step for done in answered] == [0, 1]
    device["fault"] = fault = RuntimeError("CUDA error: an illegal memory access was encountered")
    answers.wait()
    answers.mark(Done(0, 2, None))
    assert failed.get(timeout=10) is fault
    with pytest.raises(RuntimeError, match="illegal memory access"):
        answers.settle()
    answers.wait()
    with pytest.raises(RuntimeError, match="illegal memory access"):
        answers.mark(None)
    assert failed.empty()
    assert len(answered) == 2
