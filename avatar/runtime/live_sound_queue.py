"""The sound of a live session where it arrives: queued until the source has time for it."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator

import numpy as np

from avatar.runtime.protocol import LiveSound

POLL_S = 0.1  # so often it is looked whether a session is over


class SoundInbox:
    """The sound of a session on its way to the source; any thread may put."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[LiveSound] = queue.SimpleQueue()

    def put(self, message: LiveSound) -> None:
        """Called as it comes."""
        self._waiting.put(message)

    def of(self, run: int, stopped: Callable[[], bool]) -> Iterator[np.ndarray]:
        """The sound of one run until it is stopped; that of earlier ones is dropped."""
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
