"""A session that has no end: what an engine adds of its own, and how its process is talked to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from avatar.errors import Cancelled
from avatar.events import Notice, Progress
from avatar.request import LiveRequest
from avatar.runtime.protocol import LiveSound, Run
from avatar.runtime.supervisor import Supervised


@dataclass(frozen=True)
class LiveFrames:
    """Frames with their samples: what is shown is heard at the same time.

    first_frame: of the session. frames: uint8 (T, H, W, 3) RGB, always of one size. sound: int16 (n,) at
    SOUND_HZ, 1920 for each frame.
    """

    first_frame: int
    frames: np.ndarray
    sound: np.ndarray


class LiveSource(Protocol):
    """A FrameSource that can also follow sound as it comes."""

    def live(
        self, request: LiveRequest, sound: Iterator[np.ndarray], cancelled: Callable[[], bool]
    ) -> Iterator[LiveFrames | Notice | Progress]:
        """Yield frames in order, each as soon as its sound and what it looks ahead are there.

        sound: int16 (n,) at SOUND_HZ, silence where nobody speaks; what came while the source was busy comes
        together. Ends when the sound does, or raises Cancelled. cancelled: when it says yes the sound ends
        soon after. Raises: AvatarError.
        """
        ...


class LiveRun:
    """A session as whoever began it sees it. One thread follows, another speaks."""

    def __init__(
        self, processes: Supervised, run: Run, cancel_limit_s: float, over: Callable[[], None]
    ) -> None:
        """over: called once, when the session has ended."""
        self._processes, self._run, self._limit_s, self._over = processes, run, cancel_limit_s, over
        self._cancelled = threading.Event()
        self._beginning = threading.Lock()
        self._has_begun = False

    def hear(self, samples: np.ndarray) -> None:
        """Give the next sound, int16 (n,) at SOUND_HZ. Raises: AvatarError when the process is gone."""
        self._processes.send(LiveSound(self._run.run, samples))

    def follow(self) -> Iterator[LiveFrames | Notice | Progress | None]:
        """What the engine says until the session ends; None when it is silent for a while.

        Closing the iterator ends the session. To be called once. Raises: AvatarError.
        """
        if not self._begins():
            return
        try:
            for message in self._processes.follow(self._run, self._cancelled.is_set, self._limit_s):
                if message is None or isinstance(message, LiveFrames | Notice | Progress):
                    yield message
        except Cancelled:
            return
        finally:
            self._over()

    def end(self) -> None:
        """End the session; follow() ends soon after, or at once where it has not begun. Any thread may."""
        self._cancelled.set()
        if self._begins():
            self._over()

    def _begins(self) -> bool:
        """Whether this is the first of all calls."""
        with self._beginning:
            begins, self._has_begun = not self._has_begun, True
        return begins
