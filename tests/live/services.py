"""Recognisers and voices of which a test decides what they say."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np

from avatar.live.conversation import Conversation
from avatar.live.service_address import ServiceDown
from avatar.speech.catalogue import Catalogue
from avatar.speech.voices import Voice
from tests.live.engines import Noting


class Beeps:
    """See SpeechEngine: a beep for each letter, at once."""

    hz = 24_000

    def voices(self):
        return [Voice("heart", "en-US", (), "Beeps")]

    def load(self, voice):
        pass

    def synthesise(self, text, voice, speed=1.0):
        places = np.arange(len(text) * 1200)
        yield (0.3 * np.sin(places * 0.1)).astype(np.float32)


class Voices(Catalogue):
    engines = (Beeps(),)


class Deaf:
    """See Recogniser: always down."""

    def load(self):
        pass

    def words(self, samples):
        raise ServiceDown("The recogniser is down.", why="silent", service="recognition", host="here")


class Parrot:
    """See Recogniser: hears the same words whatever is said."""

    def __init__(self, understood: str = "how are you today") -> None:
        self.heard: list[int] = []
        self.understood = understood

    def load(self) -> None:
        pass

    def words(self, samples: np.ndarray) -> str:
        self.heard.append(len(samples))
        return self.understood


class SlowVoice(Beeps):
    """Beeps when it is allowed to."""

    def __init__(self) -> None:
        self.hold, self.error = threading.Event(), None

    def synthesise(self, text, voice, speed=1.0):
        if self.error is not None:
            raise self.error
        self.hold.wait(20)
        yield from super().synthesise(text, voice, speed)


def speak(conversation: Conversation, sound: np.ndarray) -> None:
    for piece in np.array_split(sound, len(sound) // 1920):
        conversation.hear(piece)


def said(watcher: Noting, who: str) -> list[str]:
    return [one["text"] for one in watcher.reported if one["type"] == "said" and one["who"] == who]


def notices(watcher: Noting) -> list[str]:
    return [one["code"] for one in watcher.reported if one["type"] == "notice"]


def slowly(piece: str, count: int) -> Iterator[str]:
    """A piece again and again, twenty a second."""
    for _ in range(count):
        time.sleep(0.05)
        yield piece
