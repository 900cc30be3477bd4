"""The queue that holds a live session's incoming sound until the source reads it."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator

import numpy as np

from avatar.runtime.protocol import LiveSound

POLL_S = 0.1  # interval between checks whether the session is over


class SoundInbox:
    """A session's sound on its way to the source; any thread may call put()."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[LiveSound] = queue.SimpleQueue()

    def put(self, message: LiveSound) -> None:
        """Queue sound that has arrived."""
        self._waiting.put(message)

    def of(self, run: int, stopped: Callable[[], bool]) -> Iterator[np.ndarray]:
        """Yield the sound of one run until it is stopped; sound of earlier runs is dropped."""
        while not stopped():
            try:
                pieces = [self._waiting.get(timeout=POLL_S)]
            except queue.Empty:
                continue
            while not self._waiting.empty():
                pieces.append(self._waiting.get())
            heard = [piece.samples for piece in pieces if piece.run == run]
            if heard:
                yield np.concatenate(heard)
