"""A session: paced by the clock, shown to all who watch, reported when it ends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from avatar.errors import AvatarError
from avatar.events import Notice
from avatar.live.session import LiveSession
from avatar.media.timeline import SAMPLES_PER_FRAME
from avatar.preset import Preset
from avatar.request import LiveRequest
from tests.fixtures.server import wait_until
from tests.live.engines import Noting, QuickEngine

REQUEST = LiveRequest(Path(), Path(), Preset("test", "Test", "For tests", "preview"), "me.png")


@pytest.fixture
def engine():
    return QuickEngine()


@pytest.fixture
def session(engine):
    session = LiveSession(engine, REQUEST)
    yield session
    session.end()


def test_frames_flow_with_the_sound_that_is_said(session):
    watcher = Noting()
    session.watch(watcher)
    said = np.arange(1, 8 * SAMPLES_PER_FRAME + 1, dtype=np.int16)
    session.say(said)
    wait_until(lambda: len(watcher.made) > 20, "frames")
    heard = np.concatenate([one.sound for one in watcher.made])
    begin = int(np.flatnonzero(heard)[0])
    assert np.array_equal(heard[begin:][: len(said)], said)
    numbers = [one.first_frame for one in watcher.made]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_the_clock_gives_no_more_than_real_time(session):
    watcher = Noting()
    session.watch(watcher)
    waited_s = wait_until(lambda: len(watcher.made) >= 25, "a second of frames")
    assert len(watcher.made) <= waited_s * 25 + 16  # a stopped clock may catch up half a second


def test_an_interruption_cuts_what_waits(session):
    watcher = Noting()
    session.watch(watcher)
    session.say(np.full(100 * SAMPLES_PER_FRAME, 900, np.int16))
    wait_until(lambda: any(one.sound.any() for one in watcher.made), "sound")
    assert session.interrupt()
    wait_until(lambda: not watcher.made[-1].sound.any(), "silence")
    assert sum(bool(one.sound.any()) for one in watcher.made) < 60
    assert session.sound_queue.waiting_s == 0


def test_notices_and_pace_are_reported(engine):
    engine.notice = Notice("live_size", "Drawn smaller.", "warning", values={"size": "1*1"})
    session, watcher = LiveSession(engine, REQUEST), Noting()
    session.watch(watcher)
    wait_until(lambda: any(one["type"] == "pace" for one in watcher.reported), "the pace")
    pace = next(one for one in watcher.reported if one["type"] == "pace")
    assert pace["fps"] > 1
    assert pace["engine_ms"] >= 0
    session.end()
    assert watcher.reason == ""


def test_sound_that_was_left_out_does_not_count_as_delay(engine):
    engine.leaves_out = 20
    session, watcher = LiveSession(engine, REQUEST), Noting()
    session.watch(watcher)
    wait_until(lambda: len(watcher.made) > 10, "frames")
    session.end()
    assert 0 < session.pace.engine_s < 0.4
    assert len(session._given_at) < 20


def test_a_failing_engine_ends_the_session_in_words(session, engine):
    watcher = Noting()
    session.watch(watcher)
    engine.failure = AvatarError("The engine's process was lost.", "Begin again.")
    assert watcher.ended.wait(20)
    assert watcher.reason == "The engine's process was lost. Begin again."
    late = Noting()
    session.watch(late)
    assert late.reason == watcher.reason


def test_who_has_left_is_shown_no_more(session):
    stays, leaves = Noting(), Noting()
    for watcher in (stays, leaves):
        session.watch(watcher)
    wait_until(lambda: leaves.made, "frames")
    session.leave(leaves)
    seen = len(leaves.made)
    before = len(stays.made)
    wait_until(lambda: len(stays.made) > before + 5, "more frames")
    assert len(leaves.made) <= seen + 1
