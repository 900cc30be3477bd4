"""Sound that waits to be said: even in pace, flat in delay, cut at once."""

from __future__ import annotations

import numpy as np
import pytest

from avatar.geometry import SOUND_HZ
from avatar.live.sound_queue import FADE, GATHERED_S, MOST_WAITING_S, SMALLEST_DROP_S, SoundQueue

FRAME = 1920


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def ones(count: int, value: int = 1000) -> np.ndarray:
    return np.full(count, value, np.int16)


def test_silence_where_nothing_waits():
    sound = SoundQueue()
    assert not sound.take(FRAME).any()
    assert len(sound.take(FRAME)) == FRAME


def test_a_voice_is_said_whole_and_in_order():
    sound = SoundQueue(Clock())
    said = np.arange(10 * FRAME, dtype=np.int16)
    for piece in np.array_split(said, 7):
        assert sound.add(piece)
    assert np.array_equal(np.concatenate([sound.take(FRAME) for _ in range(10)]), said)
    assert not sound.take(FRAME).any()


def test_uneven_packets_of_a_microphone_leave_no_gap():
    clock = Clock()
    sound, taken = SoundQueue(clock), []
    for tick in range(100):
        clock.now = tick * 0.04
        if tick % 2 == 0:  # two packets at once, then none
            sound.add(ones(2 * FRAME), live=True)
        taken.append(sound.take(FRAME))
    said = np.concatenate(taken)
    first = int(np.flatnonzero(said)[0])
    assert first <= 2 * FRAME
    assert said[first:].all()


def test_what_is_less_than_a_packet_is_said_after_a_moment():
    clock = Clock()
    sound = SoundQueue(clock)
    sound.add(ones(500))
    assert not sound.take(FRAME).any()
    clock.now = GATHERED_S + 0.01
    assert sound.take(FRAME)[:500].all()


def test_a_fast_microphone_clock_does_not_add_delay():
    clock = Clock()
    sound = SoundQueue(clock)
    waiting = []
    for tick in range(10_000):
        clock.now = tick * 0.04
        sound.add(ones(FRAME + 4), live=True)  # 0.2 % fast
        sound.take(FRAME)
        waiting.append(sound.waiting_s)
    assert max(waiting[100:]) <= GATHERED_S + SMALLEST_DROP_S + 0.02
    assert sound.num_dropped > 0


def stalled(clock: Clock, sound: SoundQueue, pieces: list[np.ndarray], live: bool) -> list[np.ndarray]:
    """A piece each 40 ms, but for a stall of 200 ms after the first second, whose pieces come at once."""
    taken, late = [], []
    for tick, piece in enumerate(pieces):
        clock.now = tick * 0.04
        late.append(piece)
        if not 25 <= tick < 30:
            for each in late:
                sound.add(each, live=live)
            late.clear()
        taken.append(sound.take(FRAME))
    return taken


def test_delay_left_by_a_stall_is_given_back_in_a_pause():
    clock = Clock()
    sound = SoundQueue(clock)
    pieces = [ones(FRAME) if tick % 75 < 60 else ones(FRAME, 0) for tick in range(250)]
    taken = np.concatenate(stalled(clock, sound, pieces, live=True))
    assert sound.waiting_s <= GATHERED_S
    assert sound.num_dropped == pytest.approx(0.2 * SOUND_HZ, abs=0.05 * SOUND_HZ)
    loud = np.concatenate(pieces)[: len(taken) - 10 * FRAME].astype(bool).sum()
    assert taken.astype(bool).sum() >= loud - FADE, "nothing that was loud is lost"


def test_without_a_pause_the_delay_is_given_back_by_a_crossfade():
    clock = Clock()
    sound = SoundQueue(clock)
    pieces = [ones(FRAME) for _ in range(400)]
    taken = np.concatenate(stalled(clock, sound, pieces, live=True))
    assert sound.waiting_s <= GATHERED_S
    after = taken[35 * FRAME :].astype(int)
    assert np.abs(after - 1000).max() <= 1, "the passages are joined without a dip"


def test_a_typed_text_loses_nothing_by_waiting():
    clock = Clock()
    sound = SoundQueue(clock)
    stalled(clock, sound, [ones(FRAME, 0) for _ in range(400)], live=False)
    assert sound.num_dropped == 0


class Line:
    """A queue and an engine that looks ahead: what a watcher hears comes so many frames later."""

    def __init__(self, look_ahead: int) -> None:
        self.queue, self._look_ahead = SoundQueue(Clock()), look_ahead
        self._taken: list[np.ndarray] = []
        self._heard = 0

    def frame(self) -> np.ndarray:
        """Take the next frame's sound; returns what is heard meanwhile."""
        self._taken.append(self.queue.take(FRAME))
        if len(self._taken) <= self._look_ahead:
            return np.zeros(FRAME, np.int16)
        self._heard += 1
        return self.queue.heard(self._heard - 1, self._taken[self._heard - 1])

    def frames(self, count: int) -> np.ndarray:
        return np.concatenate([self.frame() for _ in range(count)])


def test_a_cut_leaves_a_fade_and_then_silence():
    sound = SoundQueue(Clock())
    assert not sound.cut()
    sound.add(ones(SOUND_HZ))
    sound.heard(0, sound.take(FRAME))
    assert sound.cut()
    said = sound.take(FRAME)
    assert said[0] == 1000
    assert (np.diff(said.astype(int)[: FADE + 1]) <= 0).all()
    assert not said[FADE:].any()
    assert not sound.take(FRAME).any()
    sound.add(ones(FRAME * 3, 7))  # and what comes after it is said
    assert (sound.take(FRAME) == 7).all()


def test_a_cut_silences_what_the_engine_still_holds():
    line = Line(look_ahead=5)
    line.queue.add(ones(SOUND_HZ))
    assert line.frames(10)[-FRAME:].all()
    assert line.queue.cut()
    heard = line.frames(10).astype(int)
    assert heard[0] == 1000
    assert (np.diff(heard[: FADE + 1]) <= 0).all()
    assert not heard[FADE:].any()
    line.queue.add(ones(3 * FRAME, 7))
    assert (line.frames(9)[5 * FRAME : 8 * FRAME] == 7).all(), "and what comes after it is heard"


def test_what_the_engine_holds_at_the_end_is_cut_too():
    line = Line(look_ahead=5)
    line.queue.add(ones(8 * FRAME))
    line.frames(8)
    assert line.queue.waiting_s == 0
    assert line.queue.cut()
    assert not line.frames(6)[FADE:].any()
    assert not line.queue.cut()


@pytest.mark.parametrize("look_ahead", [0, 5, 24])
def test_what_is_held_goes_on_from_where_it_fell_silent(look_ahead):
    line, voice = Line(look_ahead), np.arange(1, 40 * FRAME + 1) // 4
    line.queue.add(voice.astype(np.int16))
    before = line.frames(look_ahead + 4)[look_ahead * FRAME :]
    line.queue.hold(True)
    line.queue.hold(True)
    held = line.frames(7)
    assert held[0] == voice[4 * FRAME]
    assert not held[FADE:].any()
    line.queue.hold(False)
    after = line.frames(50 + look_ahead)
    begin = int(np.flatnonzero(after)[0])
    assert np.array_equal(before, voice[: 4 * FRAME])
    rest = voice[4 * FRAME :]
    assert np.array_equal(after[begin - 1 :][FADE : len(rest)], rest[FADE:]), "nothing of it is lost"
    assert (after[begin - 1 :][:FADE] <= rest[:FADE]).all(), "it fades in"


def test_a_second_cough_loses_nothing_either():
    line, voice = Line(look_ahead=5), np.arange(1, 40 * FRAME + 1) // 4
    line.queue.add(voice.astype(np.int16))
    heard = [line.frames(10)]
    for on in (True, False, True, False):
        line.queue.hold(on)
        heard.append(line.frames(2))  # less than the engine holds
    heard.append(line.frames(60))
    whole = np.concatenate(heard).astype(int)
    unheard = np.flatnonzero(~np.isin(voice, whole))
    assert len(unheard) <= FADE, "all but where it faded was heard as it is"


def test_what_is_held_can_be_cut():
    for look_ahead in (0, 5):
        line = Line(look_ahead)
        line.queue.add(np.full(48_000, 10_000, np.int16))
        line.frames(look_ahead + 1)
        line.queue.hold(True)
        line.frames(1)
        assert line.queue.cut()
        line.queue.hold(False)
        assert not line.frames(20).any()


def test_no_more_is_taken_than_three_minutes_ahead():
    sound = SoundQueue(Clock())
    assert sound.add(ones(round(MOST_WAITING_S * SOUND_HZ)))
    assert not sound.add(ones(1))
    assert sound.waiting_s == MOST_WAITING_S
