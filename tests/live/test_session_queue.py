"""Who has a session: one an engine, the others in line; who does not watch gives it up."""

from __future__ import annotations

import pytest

from avatar.errors import AvatarError
from avatar.live.session_queue import PER_MINUTE, LiveFull, LiveLine
from avatar.preset import Preset
from avatar.request import LiveRequest
from tests.fixtures.server import wait_until
from tests.live.engines import QuickEngine


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def engine():
    return QuickEngine()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def line(engine, clock):
    line = LiveLine([engine], most_waiting=3, per_visitor=2, clock=clock)
    yield line
    line.close()


@pytest.fixture
def ask(line, tmp_path):
    def asked(visitor: str):
        folder = tmp_path / f"live-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        preset = Preset("test", "Test", "For tests", "preview")
        return line.ask(LiveRequest(folder / "p.png", folder, preset, "me.png"), visitor)

    return asked


def test_the_first_begins_and_the_second_is_reported_its_place(line, ask, engine):
    first, second, third = ask("a"), ask("b"), ask("c")
    assert [line.place(one) for one in (first, second, third)] == [0, 1, 2]
    assert first.session is not None
    assert second.session is None
    line.end(first)
    assert [line.place(one) for one in (second, third)] == [0, 1]
    assert second.session is not None
    assert engine.num_runs == 2
    assert not first.request.work.exists()


def test_a_session_that_nobody_watches_ends(line, ask, clock, engine):
    ticket = ask("a")
    line.connected(ticket)
    clock.now = 100.0
    wait_until(lambda: ticket.watched_at == 100.0, "a look")
    assert line.find(ticket.token) is ticket
    line.left(ticket)
    clock.now = 129.0
    assert line.find(ticket.token) is ticket
    clock.now = 131.0
    wait_until(lambda: line.find(ticket.token) is None, "the end")
    assert ticket.session.over.wait(10)
    assert engine.running is None


def test_an_abandoned_place_in_line_is_given_up(line, ask, clock):
    first, second, third = ask("a"), ask("b"), ask("c")
    for ticket in (first, third):
        line.connected(ticket)
    clock.now = 31.0
    wait_until(lambda: line.find(second.token) is None, "the place is free")
    assert line.place(third) == 1


def test_a_session_whose_engine_failed_frees_its_place(line, ask, engine):
    first, second = ask("a"), ask("b")
    line.connected(first)
    engine.failure = AvatarError("Lost.")
    wait_until(lambda: first.is_over, "the end")
    engine.failure = None
    assert line.place(second) == 0


def test_visitors_and_the_line_are_limited(ask):
    ask("a"), ask("a")
    with pytest.raises(LiveFull, match="already"):
        ask("a")
    ask("b"), ask("c")
    with pytest.raises(LiveFull, match="queue"):
        ask("d")


def test_sessions_are_limited_in_rate(line, ask, clock):
    for _ in range(PER_MINUTE):
        line.end(ask("a"))
    with pytest.raises(LiveFull, match="minute"):
        ask("a")
    line.end(ask("b"))
    clock.now = 61.0
    line.end(ask("a"))


def test_tokens_cannot_be_guessed(line, ask):
    tokens = {ask("a").token, ask("b").token}
    assert len(tokens) == 2
    assert all(len(token) == 48 for token in tokens)
    assert line.find("") is None
