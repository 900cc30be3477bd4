"""A text spoken in the background: a fast voice is waited for, a slow one is not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from avatar.errors import AvatarError, Cancelled
from avatar.media.growing import GrowingRecording
from avatar.media.limits import InputLimits
from avatar.settings import Speaking
from avatar.speech import voicing
from avatar.speech.catalogue import Catalogue
from avatar.speech.narration import Narrator, Script
from avatar.speech.voicing import Voicing

TEXT = " ".join(f"This is the sentence of number {number}." for number in range(1, 7))
TONE = (0.3 * np.sin(np.arange(24_000) * 0.05)).astype(np.float32)


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Voicing]]:
    """A function that begins a voice; act is called with the number of each sentence before it is said."""
    begun: list[Voicing] = []

    def voice(act: Callable[[int], None] = lambda number: None, gain: float = 1.0, **more: object) -> Voicing:
        narrator = Narrator.of(Script(TEXT, Speaking(**more)), Catalogue())
        said: list[str] = []

        def synthesise(text: str, voice: str, speed: float) -> Iterator[np.ndarray]:
            said.append(text)
            act(len(said))
            yield TONE * np.float32(gain)

        monkeypatch.setattr(narrator.engine, "synthesise", synthesise)
        begun.append(Voicing(narrator, tmp_path, InputLimits()))
        return begun[-1]

    yield voice
    for one in begun:
        one.stop()


def test_a_fast_voice_is_waited_for(begin):
    fast = begin()
    for _ in fast.wait(may_grow=True):
        pass
    assert fast.is_whole
    assert fast.spoken.is_file()
    assert [one.text for one in fast.captions] == [one.text for one in fast.outline]
    assert GrowingRecording(fast.journal).look().ended


def test_a_slow_voice_is_followed_after_its_first_sentence(begin, monkeypatch):
    monkeypatch.setattr(voicing, "SETTLING_S", 0.0)
    monkeypatch.setattr(voicing, "SOON_S", 0.0)
    go = threading.Event()
    slow = begin(lambda number: number < 2 or go.wait(30))
    for _ in slow.wait(may_grow=True):
        pass
    assert not slow.is_whole
    assert len(GrowingRecording(slow.journal).look().captions) == 1
    go.set()
    for _ in slow.wait(may_grow=False):
        pass
    assert slow.is_whole


@pytest.mark.parametrize(
    ("marks", "is_slow"),
    [
        ([], False),
        ([0.9], False),  # its model was loading; the next sentence may come at once
        ([0.9, 0.92], False),
        ([0.9, 0.92, 0.95], False),
        ([1.0, 2.0], True),
        ([1.0, 1.2, 1.4], False),
        ([6.0, 7.5, 9.0, 10.5], True),
        ([6.0, 7.5, 9.0, 10.5, 12.0], False),  # there is little left
    ],
)
def test_the_pace_tells_a_slow_voice(begin, marks, is_slow):
    voice, begun = begin(), 100.0
    letters = voice._letters // 6
    voice._marks = [(begun, 0), *((begun + at, letters * number) for number, at in enumerate(marks, 1))]
    now = begun + max(marks, default=0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: now)
        assert voice._is_slow() is is_slow


def test_a_quiet_voice_is_waited_for(begin, monkeypatch):
    monkeypatch.setattr(Voicing, "_is_slow", lambda self: True)
    quiet = begin(gain=0.003)
    for _ in quiet.wait(may_grow=True):
        pass
    assert quiet.is_whole


def test_a_text_that_may_be_too_long_is_spoken_first(begin):
    voice = begin()
    assert voice.can_grow
    voice._limits = InputLimits(max_speech_s=30.0)
    assert not voice.can_grow


def test_a_bug_of_a_voice_ends_its_recording_in_words(begin):
    def act(number: int) -> None:
        if number == 3:
            raise ZeroDivisionError("/secret/place")

    broken, over = begin(act), threading.Event()
    broken.when_over(over.set)
    assert over.wait(30)
    with pytest.raises(AvatarError, match="The voice failed"):
        list(broken.wait(may_grow=False))
    growth = GrowingRecording(broken.journal).look()
    assert growth.ended
    assert growth.error == ("The voice failed.", "Try again, or choose another voice.")
    assert len(growth.captions) == 2


def test_a_stopped_voice_says_no_more_and_is_waited_for_by_nobody(begin):
    go, said = threading.Event(), []
    voice = begin(lambda number: said.append(number) or (number == 2 and go.wait(30)))
    voice.cancel()
    go.set()
    with pytest.raises(Cancelled):
        list(voice.wait(may_grow=False))
    voice.stop()
    assert len(said) <= 2
    called: list[bool] = []
    voice.when_over(lambda: called.append(True))
    assert called == [True], "at once, as it has ended"


def test_captions_that_are_off_are_not_in_the_journal(begin):
    silent = begin(captions="off")
    for _ in silent.wait(may_grow=False):
        pass
    assert silent.outline == ()
    assert GrowingRecording(silent.journal).look().captions == ()
    assert len(silent.captions) == 6
