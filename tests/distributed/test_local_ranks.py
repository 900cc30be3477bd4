"""Listening to ranks: whatever comes over a link, and whenever it ends, the listener is not held up."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import numpy as np
import pytest

from avatar.errors import WorkerLost
from avatar.preset import load_preset
from avatar.runtime.child_process import hang_up
from avatar.runtime.local_ranks import Limits, SupervisedRanks
from avatar.runtime.protocol import MadeFrames, Pulse
from avatar.runtime.supervisor import MAX_UNREAD

LIMITS = Limits(silence_s=0.5, start_s=1.0, stall_s=60.0, first_factor=1.0)
PATIENCE_S = 30.0


class Piped(SupervisedRanks):
    """One rank, which the test plays at the other end of a pipe."""

    def __init__(self, link: Connection) -> None:
        super().__init__(load_preset("self-test"), LIMITS)
        self.link: Connection | None = link
        self._read(link)

    @property
    def links(self) -> Sequence[Connection]:
        return [self.link] if self.link else []

    @property
    def alive(self) -> bool:
        return self.link is not None

    def end(self) -> None:
        link, self.link = self.link, None
        if link:
            hang_up(link)
            self._stop_reading()
            link.close()

    def fate_of(self, link: Connection) -> tuple[int, str]:
        return 0, "hung up"


@pytest.fixture
def pair() -> Iterator[tuple[Piped, Connection]]:
    ours, theirs = Pipe()
    ranks = Piped(ours)
    yield ranks, theirs
    ranks.end()
    theirs.close()


def receive_all(ranks: SupervisedRanks) -> list[object]:
    """Everything, until an error is raised; at most for a while."""
    messages, end = [], time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        messages.append(ranks.receive())
    return messages


def test_a_rank_that_stops_within_a_message_is_taken_for_hung(pair):
    ranks, theirs = pair
    theirs.send(Pulse(0, place="CPU"))
    os.write(theirs.fileno(), struct.pack("!i", 1000) + b"half")
    with pytest.raises(WorkerLost, match="gave no sign of life"):
        receive_all(ranks)
    assert not ranks.alive


def test_what_came_before_the_end_is_not_lost(pair):
    ranks, theirs = pair
    frames = np.zeros((1, 4, 4, 3), np.uint8)
    for number in range(MAX_UNREAD - 1):
        theirs.send(MadeFrames(number, frames))
    theirs.close()
    received: list[object] = []
    with pytest.raises(WorkerLost, match="hung up"):
        received.extend(iter(ranks.receive, "never"))
    received += list(ranks.unread())
    assert [message.run for message in received if message] == list(range(MAX_UNREAD - 1))


def test_a_message_that_cannot_be_read_ends_the_link(pair, caplog):
    ranks, theirs = pair
    theirs.send_bytes(b"no message")
    with pytest.raises(WorkerLost, match="hung up"):
        receive_all(ranks)
    assert "a message cannot be read" in caplog.text
