"""Engines for sessions that need none: each frame of one colour, ten samples' notice ahead."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import numpy as np

from avatar.errors import AvatarError
from avatar.events import Notice, Phase, Progress
from avatar.media.timeline import SAMPLES_PER_FRAME
from avatar.request import LiveRequest
from avatar.runtime.live_protocol import LiveFrames


class QuickRun:
    """See LiveRun."""

    def __init__(self, engine: QuickEngine) -> None:
        self._engine, self._sound = engine, queue.Queue()
        self.ended = threading.Event()

    def hear(self, samples: np.ndarray) -> None:
        self._sound.put(samples)

    def follow(self) -> Iterator[LiveFrames | Notice | Progress | None]:
        yield Progress(Phase.LOADING)
        yield Progress(Phase.GENERATING)
        if self._engine.notice:
            yield self._engine.notice
        index = num_left_out = 0
        while not self.ended.is_set():
            if self._engine.failure is not None:
                self._engine.running = None
                raise self._engine.failure
            try:
                samples = self._sound.get(timeout=0.02)
            except queue.Empty:
                yield None
                continue
            assert len(samples) == SAMPLES_PER_FRAME
            if num_left_out < self._engine.leaves_out:
                num_left_out += 1
                continue
            picture = np.full((1, 64, 48, 3), index % 200, np.uint8)
            yield LiveFrames(index, picture, samples, num_left_out)
            index += 1
        self._engine.running = None

    def end(self) -> None:
        self.ended.set()
        self._engine.running = None


class QuickEngine:
    """See LiveEngine."""

    def __init__(self) -> None:
        self.running: QuickRun | None = None
        self.num_runs = 0
        self.leaves_out = 0  # frames of sound, at the beginning
        self.failure: AvatarError | None = None
        self.notice: Notice | None = None

    def live(self, request: LiveRequest) -> QuickRun:
        if self.running is not None:
            raise AvatarError("busy")
        self.num_runs += 1
        self.running = QuickRun(self)
        return self.running


class Noting:
    """A watcher that keeps what it is shown."""

    def __init__(self) -> None:
        self.made: list[LiveFrames] = []
        self.reported: list[dict] = []
        self.reason: str | None = None
        self.ended = threading.Event()

    def show(self, made: LiveFrames) -> None:
        self.made.append(made)

    def on_event(self, what) -> None:
        self.reported.append(dict(what))

    def end(self, reason: str) -> None:
        self.reason = reason
        self.ended.set()
