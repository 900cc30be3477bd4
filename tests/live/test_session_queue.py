"""Who has a session: one an engine, the others in the queue; who does not watch gives it up."""

from __future__ import annotations

import pytest

from avatar.errors import AvatarError
from avatar.live.session_queue import PER_MINUTE, LiveQueueFull, LiveSessionQueue
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
def session_queue(engine, clock):
    session_queue = LiveSessionQueue([engine], most_waiting=3, per_visitor=2, clock=clock)
    yield session_queue
    session_queue.close()


@pytest.fixture
def ask(session_queue, tmp_path):
    def asked(visitor: str):
        folder = tmp_path / f"live-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        preset = Preset("test", "Test", "For tests", "preview")
        return session_queue.ask(LiveRequest(folder / "p.png", folder, preset, "me.png"), visitor)

    return asked


def test_the_first_begins_and_the_second_is_reported_its_place(session_queue, ask, engine):
    first, second, third = ask("a"), ask("b"), ask("c")
    assert [session_queue.place(one) for one in (first, second, third)] == [0, 1, 2]
    assert first.session is not None
    assert second.session is None
    session_queue.end(first)
    assert [session_queue.place(one) for one in (second, third)] == [0, 1]
    assert second.session is not None
    assert engine.num_runs == 2
    assert not first.request.work.exists()


def test_a_session_that_nobody_watches_ends(session_queue, ask, clock, engine):
    ticket = ask("a")
    session_queue.connected(ticket)
    clock.now = 100.0
    wait_until(lambda: ticket.watched_at == 100.0, "a look")
    assert session_queue.find(ticket.token) is ticket
    session_queue.left(ticket)
    clock.now = 129.0
    assert session_queue.find(ticket.token) is ticket
    clock.now = 131.0
    wait_until(lambda: session_queue.find(ticket.token) is None, "the end")
    assert ticket.session.over.wait(10)
    assert engine.running is None


def test_an_abandoned_place_in_the_queue_is_given_up(session_queue, ask, clock):
    first, second, third = ask("a"), ask("b"), ask("c")
    for ticket in (first, third):
        session_queue.connected(ticket)
    clock.now = 31.0
    wait_until(lambda: session_queue.find(second.token) is None, "the place is free")
    assert session_queue.place(third) == 1


def test_a_session_whose_engine_failed_frees_its_place(session_queue, ask, engine):
    first, second = ask("a"), ask("b")
    session_queue.connected(first)
    engine.failure = AvatarError("Lost.")
    wait_until(lambda: first.is_over, "the end")
    engine.failure = None
    assert session_queue.place(second) == 0


def test_visitors_and_the_line_are_limited(ask):
    ask("a"), ask("a")
    with pytest.raises(LiveQueueFull, match="already"):
        ask("a")
    ask("b"), ask("c")
    with pytest.raises(LiveQueueFull, match="queue"):
        ask("d")


def test_sessions_are_limited_in_rate(session_queue, ask, clock):
    for _ in range(PER_MINUTE):
        session_queue.end(ask("a"))
    with pytest.raises(LiveQueueFull, match="minute"):
        ask("a")
    session_queue.end(ask("b"))
    clock.now = 61.0
    session_queue.end(ask("a"))
    clock.now = 200.0
    wait_until(lambda: session_queue._asked == {}, "visitors of before are forgotten")


def test_tokens_cannot_be_guessed(session_queue, ask):
    tokens = {ask("a").token, ask("b").token}
    assert len(tokens) == 2
    assert all(len(token) == 48 for token in tokens)
    assert session_queue.find("") is None
