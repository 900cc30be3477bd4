"""The sound that a session's engine holds for its look-ahead, which an interruption takes back.

Without it an interrupted voice would go on for as long as the engine looks ahead.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from avatar.media.timeline import SAMPLES_PER_FRAME

FADE = 480  # samples over which sound fades out and in: 10 ms


class UnheardSound:
    """Sound that was given to the engine and has not come back with its frames. Not thread-safe.

    Frames are counted as they are given, from 0.
    """

    def __init__(self) -> None:
        self._frames: deque[tuple[int, np.ndarray]] = deque()  # without those that were taken back
        self._num_given = self._next = 0  # _next: the first frame that has not come back
        self._silent_until = 0
        self._fades = False  # the next frame is the first of those that were taken back

    def give(self, samples: np.ndarray) -> None:
        """Note the next frame's sound, int16 (SAMPLES_PER_FRAME,)."""
        self._frames.append((self._num_given, samples))
        self._num_given += 1

    def take_back(self) -> np.ndarray:
        """Let the sound come back as silence; returns what nobody will hear, int16 (n,)."""
        self._fades = self._fades or self._silent_until <= self._next
        self._silent_until = self._num_given
        taken = [samples for _, samples in self._frames]
        self._frames.clear()
        return np.concatenate(taken) if taken else np.empty(0, np.int16)

    def heard(self, first: int, sound: np.ndarray) -> np.ndarray:
        """The sound of frames that have come back, as it is to be heard. first: the first one's number."""
        self._next = first + len(sound) // SAMPLES_PER_FRAME
        while self._frames and self._frames[0][0] < self._next:
            self._frames.popleft()
        num_silent = min((self._silent_until - first) * SAMPLES_PER_FRAME, len(sound))
        if num_silent <= 0:
            return sound
        out = sound.copy()
        out[:num_silent] = 0
        if self._fades:
            out[:FADE] = sound[:FADE] * np.linspace(1.0, 0.0, len(sound[:FADE]))
            self._fades = False
        return out
