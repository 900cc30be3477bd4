"""Queue of sound to be spoken: added at any pace, taken 40 ms at a time, with silence when it is empty."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

import numpy as np

from avatar.geometry import SOUND_HZ

# A microphone's packets arrive unevenly: this much is buffered before the first is spoken.
GATHERED_S = 0.08
# Beyond this, microphone sound (of a faster clock, or after a network stall) is dropped down to GATHERED_S.
MOST_AHEAD_S = 0.32
MOST_WAITING_S = 180.0  # limit on queued text-to-speech sound
FADE = 480  # samples over which interrupted sound fades out


class SoundQueue:
    """The sound queue of one session. Any thread may add and cut; one thread takes."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pieces: deque[np.ndarray] = deque()
        self._lock = threading.Lock()
        self._num_waiting = 0
        self._added_at = 0.0
        self._flows = False
        self._held: np.ndarray | None = None  # what is still to be heard of the fade-out, where it is held
        self.num_dropped = 0  # samples

    @property
    def waiting_s(self) -> float:
        """Seconds of sound in the queue."""
        return self._num_waiting / SOUND_HZ

    def add(self, samples: np.ndarray, live: bool = False) -> bool:
        """Add int16 (n,) at SOUND_HZ. live: from a microphone, whose latency must not grow.

        Returns False, adding nothing, when too much is queued.
        """
        with self._lock:
            if not live and self._num_waiting + len(samples) > MOST_WAITING_S * SOUND_HZ:
                return False
            self._pieces.append(samples)
            self._num_waiting += len(samples)
            self._added_at = self._clock()
            if live and self._num_waiting > MOST_AHEAD_S * SOUND_HZ:
                self.num_dropped += self._drop(self._num_waiting - round(GATHERED_S * SOUND_HZ))
            return True

    def cut(self) -> bool:
        """Clear the queue but for a fade-out. Returns whether anything was queued."""
        with self._lock:
            found = self._num_waiting > 0
            is_heard = self._flows and self._held is None
            rest = self._taken(min(FADE, self._num_waiting)) if is_heard else np.empty(0, np.int16)
            self._pieces.clear()
            faded = (rest * np.linspace(1.0, 0.0, len(rest))).astype(np.int16)
            self._pieces.append(faded)
            self._num_waiting = len(faded)
            return found

    def hold(self, on: bool) -> None:
        """Fade to silence, keeping what is queued; or go on from there, fading in."""
        with self._lock:
            if on == (self._held is not None):
                return
            count = min(FADE, self._num_waiting)
            begins = self._taken(count) if self._flows else np.empty(0, np.int16)
            ramp = np.linspace(0.0, 1.0, len(begins))
            if on:
                self._put_back(begins)
                self._held = (begins * ramp[::-1]).astype(np.int16)
            else:
                self._put_back((begins * ramp).astype(np.int16))
                self._held = None

    def take(self, count: int) -> np.ndarray:
        """The next `count` samples, int16."""
        with self._lock:
            if self._held is not None:
                found, self._held = self._held[:count], self._held[count:]
                return np.concatenate([found, np.zeros(count - len(found), np.int16)])
            gathered = self._num_waiting >= GATHERED_S * SOUND_HZ
            waited = self._num_waiting > 0 and self._clock() - self._added_at >= GATHERED_S
            self._flows = self._flows or gathered or waited
            if not self._flows:
                return np.zeros(count, np.int16)
            found = self._taken(min(count, self._num_waiting))
            self._flows = self._num_waiting > 0 or len(found) == count
            return np.concatenate([found, np.zeros(count - len(found), np.int16)])

    def _taken(self, count: int) -> np.ndarray:
        out = []
        missing = count
        while missing:
            piece = self._pieces.popleft()
            if len(piece) > missing:
                self._pieces.appendleft(piece[missing:])
                piece = piece[:missing]
            out.append(piece)
            missing -= len(piece)
        self._num_waiting -= count
        return np.concatenate(out) if out else np.empty(0, np.int16)

    def _put_back(self, samples: np.ndarray) -> None:
        """Queue samples before all others."""
        if len(samples):
            self._pieces.appendleft(samples)
            self._num_waiting += len(samples)

    def _drop(self, count: int) -> int:
        self._taken(count)
        return count
