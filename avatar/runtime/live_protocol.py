"""Live sessions, which have no fixed end: the source's protocol, and the session as its caller sees it."""

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
    """Frames with the sound that plays while they are shown.

    first_frame: the first one's index in the session. frames: uint8 (T, H, W, 3) RGB, of constant size.
    sound: int16 (n,) at SOUND_HZ, 1920 samples per frame. num_left_out: frames of incoming sound
    that were dropped before these, because the engine was behind.
    """

    first_frame: int
    frames: np.ndarray
    sound: np.ndarray
    num_left_out: int = 0


class LiveSource(Protocol):
    """A FrameSource that can also follow live sound."""

    def live(
        self, request: LiveRequest, sound: Iterator[np.ndarray], cancelled: Callable[[], bool]
    ) -> Iterator[LiveFrames | Notice | Progress]:
        """Yield frames in order, each as soon as its sound and look-ahead have arrived.

        sound: int16 (n,) at SOUND_HZ, including silence; what arrived while the source was busy comes as one
        array. Ends when the sound does, or raises Cancelled. cancelled: once it returns True, the sound ends
        soon after. Raises: AvatarError.
        """
        ...


class LiveRun:
    """A live session, for its caller: one thread calls follow(), another may call hear()."""

    def __init__(
        self, processes: Supervised, run: Run, cancel_limit_s: float, over: Callable[[], None]
    ) -> None:
        """over: called once, when the session has ended."""
        self._processes, self._run, self._limit_s, self._over = processes, run, cancel_limit_s, over
        self._cancelled = threading.Event()
        self._beginning = threading.Lock()
        self._has_begun = False

    def hear(self, samples: np.ndarray) -> None:
        """Send the next sound, int16 (n,) at SOUND_HZ. Raises: AvatarError when the process is gone."""
        self._processes.send(LiveSound(self._run.run, samples))

    def follow(self) -> Iterator[LiveFrames | Notice | Progress | None]:
        """Yield the engine's output until the session ends; None when there is none for a while.

        Closing the iterator ends the session. Call this only once. Raises: AvatarError.
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
        """End the session; follow() ends soon after, or at once if it has not begun. Thread-safe."""
        self._cancelled.set()
        if self._begins():
            self._over()

    def _begins(self) -> bool:
        """Whether this is the first call."""
        with self._beginning:
            begins, self._has_begun = not self._has_begun, True
        return begins
