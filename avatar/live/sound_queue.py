"""Queue of sound to be spoken: added at any pace, taken 40 ms at a time, with silence when it is empty."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

import numpy as np

from avatar.geometry import FPS, SOUND_HZ
from avatar.live.unheard_sound import FADE, UnheardSound

# A microphone's packets arrive unevenly: this much is buffered before the first is spoken.
GATHERED_S = 0.08
# Beyond this, microphone sound (of a faster clock, or after a network stall) is dropped down to GATHERED_S.
MOST_AHEAD_S = 0.32
# A stall leaves more microphone sound waiting than before it. What no 40 ms in SPARE_S have needed, beyond
# LEAST_S, is dropped: where it is quiet, or after QUIET_WITHIN_S wherever it is.
SPARE_S, LEAST_S, QUIET_WITHIN_S = 2.0, 0.04, 6.0
SMALLEST_DROP_S = 0.02
QUIET = 600  # out of 32767
MOST_WAITING_S = 180.0  # limit on queued text-to-speech sound
MAX_SAMPLES = round(MOST_WAITING_S * SOUND_HZ)


class SoundQueue:
    """The sound queue of one session. Any thread may add and cut; one thread takes, a frame at a time.

    It covers what was taken and has not come back from the engine: see heard.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pieces: deque[np.ndarray] = deque()
        self._lock = threading.Lock()
        self._num_waiting = 0
        self._added_at = 0.0
        self._flows = False
        self._is_live = False
        self._least, self._takes_watched = MAX_SAMPLES, 0  # samples that the leanest of so many takes left
        self._spare, self._takes_spare = 0, 0  # samples to drop; known for so many takes
        self._held: np.ndarray | None = None  # what is still to be heard of the fade-out, where it is held
        self._unheard = UnheardSound()
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
            if not live and self._num_waiting + len(samples) > MAX_SAMPLES:
                return False
            self._pieces.append(samples)
            self._num_waiting += len(samples)
            self._added_at = self._clock()
            self._is_live = live
            if live and self._num_waiting > MOST_AHEAD_S * SOUND_HZ:
                self._drop(self._num_waiting - round(GATHERED_S * SOUND_HZ))
            return True

    def cut(self) -> bool:
        """Clear the queue but for a fade-out. Returns whether anything was queued, or not yet heard."""
        with self._lock:
            unheard = self._unheard.take_back()
            found = self._num_waiting > 0 or bool(unheard.any())
            is_heard = self._flows and self._held is None and not unheard.any()
            rest = self._taken(min(FADE, self._num_waiting)) if is_heard else np.empty(0, np.int16)
            self._pieces.clear()
            faded = (rest * np.linspace(1.0, 0.0, len(rest))).astype(np.int16)
            self._pieces.append(faded)
            self._num_waiting = len(faded)
            return found

    def hold(self, on: bool) -> None:
        """Fade to silence, keeping what was not heard; or go on from there, fading in."""
        with self._lock:
            if on == (self._held is not None):
                return
            unheard = self._unheard.take_back() if on else np.empty(0, np.int16)
            if unheard.any():
                self._put_back(unheard)
                self._held = np.empty(0, np.int16)
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

    def heard(self, first: int, sound: np.ndarray) -> np.ndarray:
        """Sound that has come back with its frames, as it is to be heard: what was cut or held is silent.

        first: how many frames were taken before. sound: int16 (n,), that of whole frames.
        """
        with self._lock:
            return self._unheard.heard(first, sound)

    def take(self, count: int) -> np.ndarray:
        """The next `count` samples, int16."""
        with self._lock:
            taken = self._next(count)
            self._unheard.give(taken)
            return taken

    def _next(self, count: int) -> np.ndarray:
        if self._held is not None:
            found, self._held = self._held[:count], self._held[count:]
            return np.concatenate([found, np.zeros(count - len(found), np.int16)])
        gathered = self._num_waiting >= GATHERED_S * SOUND_HZ
        waited = self._num_waiting > 0 and self._clock() - self._added_at >= GATHERED_S
        self._flows = self._flows or gathered or waited
        if not self._flows:
            return np.zeros(count, np.int16)
        if self._is_live:
            self._drop_spare()
        found = self._taken(min(count, self._num_waiting))
        self._note_left()
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

    def _note_left(self) -> None:
        """Find what is spare: it was there all the time."""
        self._least = min(self._least, self._num_waiting)
        self._takes_watched += 1
        if self._takes_watched >= SPARE_S * FPS:
            spare = self._least - round(LEAST_S * SOUND_HZ)
            if spare < SMALLEST_DROP_S * SOUND_HZ:
                spare = self._takes_spare = 0
            self._spare = spare
            self._least, self._takes_watched = MAX_SAMPLES, 0

    def _drop_spare(self) -> None:
        if self._spare == 0:
            return
        self._takes_spare += 1
        begins = self._taken(min(self._spare + FADE, self._num_waiting))
        self._put_back(begins)
        is_quiet = np.abs(begins.astype(int)).max(initial=0) <= QUIET
        if is_quiet or self._takes_spare > QUIET_WITHIN_S * FPS:
            self._drop(self._spare)
            self._spare = self._takes_spare = 0
            self._least, self._takes_watched = MAX_SAMPLES, 0

    def _drop(self, count: int) -> None:
        """Leave out the next samples; what is before and after them is faded into one another."""
        fade = min(FADE, self._num_waiting - count)
        if fade < 0:  # less is waiting
            return
        passage = self._taken(count + fade)
        ramp = np.linspace(0.0, 1.0, fade)
        self._put_back((passage[:fade] * (1 - ramp) + passage[count:] * ramp).astype(np.int16))
        self.num_dropped += count
