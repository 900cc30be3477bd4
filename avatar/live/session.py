"""One live session: its engine's run, the clock that paces it, and its watchers.

The audio clock leads: every 40 ms the engine gets the next 40 ms of sound, or silence, and returns frames
with the samples that belong to them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from avatar.errors import AvatarError
from avatar.events import Notice, Phase, Progress
from avatar.geometry import FPS
from avatar.live.sound_queue import SoundQueue
from avatar.media.timeline import SAMPLES_PER_FRAME
from avatar.request import LiveRequest
from avatar.runtime.live_protocol import LiveFrames, LiveRun

log = logging.getLogger(__name__)

FRAME_S = 1 / FPS
AHEAD_FRAMES = 5  # silence that an engine gets at once: its first frame waits for no look-ahead
STOOD_S = 0.5  # a clock that is further behind is reset to now: the machine slept
PACE_EVERY_S = 1.0
JOIN_S = 5.0


class Watcher(Protocol):
    """Receives a session's frames and events. Called by the session's threads, so it must not block."""

    def show(self, made: LiveFrames) -> None:
        """Take the next frames."""

    def on_event(self, what: Mapping[str, Any]) -> None:
        """Take an event: a notice, a caption, or the frame rate."""

    def end(self, reason: str) -> None:
        """Called when the session is over."""


class LiveEngine(Protocol):
    """The part of an engine process that a session uses."""

    def live(self, request: LiveRequest) -> LiveRun:
        """See EngineProcess.live."""


@dataclass
class LivePace:
    """Performance of a session. engine_s: latency from a frame's sound to the frame, last second's mean."""

    fps: float = 0.0
    engine_s: float = 0.0
    num_frames: int = 0


class LiveSession:
    """One live session, which starts on construction; thread-safe."""

    def __init__(
        self, engine: LiveEngine, request: LiveRequest, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Raises: AvatarError when the engine is busy, or its process cannot be started."""
        self.request = request
        self.sound_queue = SoundQueue(clock)
        self.pace = LivePace()
        self.width = self.height = 0  # known from the first frame on
        self.error: AvatarError | None = None
        self.over = threading.Event()
        self.shown = threading.Event()  # set at the first frame
        self._clock = clock
        self._watchers: list[Watcher] = []
        self._watching = threading.Lock()
        self._given_at: deque[tuple[int, float]] = (
            deque()
        )  # frame of sound, when the engine got it; not yet shown
        self._run = engine.live(request)
        self._generating = threading.Event()
        self._threads = [
            threading.Thread(target=self._follow, name="live-frames", daemon=True),
            threading.Thread(target=self._speak, name="live-clock", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def num_watchers(self) -> int:
        return len(self._watchers)

    def watch(self, watcher: Watcher) -> None:
        """Add a watcher, which gets everything from now on."""
        with self._watching:
            self._watchers.append(watcher)
        if self.over.is_set():
            self.leave(watcher)
            watcher.end(self._reason())

    def leave(self, watcher: Watcher) -> None:
        """Remove a watcher."""
        with self._watching:
            if watcher in self._watchers:
                self._watchers.remove(watcher)

    def say(self, samples: np.ndarray, live: bool = False) -> bool:
        """Queue int16 (n,) at SOUND_HZ to be spoken; see SoundQueue.add."""
        return self.sound_queue.add(samples, live)

    def interrupt(self) -> bool:
        """Drop the sound that nobody has heard. Returns whether there was any."""
        return self.sound_queue.cut()

    def post_event(self, what: Mapping[str, Any]) -> None:
        """Send an event to all watchers."""
        for watcher in self._all():
            watcher.on_event(what)

    def post_notice(self, notice: Notice) -> None:
        """Send a notice to all watchers."""
        reported = {"code": notice.code, "text": notice.text, "values": dict(notice.values)}
        self.post_event({"type": "notice", **reported})

    def end(self) -> None:
        """End the session and free its engine."""
        self._run.end()
        self._generating.set()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(JOIN_S)

    def _all(self) -> list[Watcher]:
        with self._watching:
            return list(self._watchers)

    def _follow(self) -> None:
        try:
            for said in self._run.follow():
                if isinstance(said, LiveFrames):
                    self._show(said)
                elif isinstance(said, Notice):
                    self.post_notice(said)
                elif isinstance(said, Progress) and said.phase is Phase.GENERATING:
                    self._generating.set()
        except AvatarError as error:
            self.error = error
        except Exception:
            log.exception("a live session failed")
            self.error = AvatarError("The session failed.", "The log of the server says why.")
        self.over.set()
        self._generating.set()
        for watcher in self._all():
            watcher.end(self._reason())

    def _reason(self) -> str:
        return "" if self.error is None else str(self.error)

    def _show(self, made: LiveFrames) -> None:
        if not self.shown.is_set():
            self.height, self.width = made.frames.shape[1:3]
            self.shown.set()
            self._since, self._shown = self._clock(), 0
        now = self._clock()
        first, given_at = made.first_frame + made.num_left_out, now
        made = replace(made, sound=self.sound_queue.heard(first, made.sound))
        while self._given_at and self._given_at[0][0] <= first:
            given_at = self._given_at.popleft()[1]
        late_s = now - given_at
        self.pace.num_frames += len(made.frames)
        self.pace.engine_s += (late_s - self.pace.engine_s) * min(1.0, FRAME_S * len(made.frames))
        for watcher in self._all():
            watcher.show(made)
        self._shown += len(made.frames)
        if now - self._since >= PACE_EVERY_S:
            self.pace.fps = self._shown / (now - self._since)
            self._since, self._shown = now, 0
            self.post_event({"type": "pace", "fps": self.pace.fps, "engine_ms": self.pace.engine_s * 1e3})

    def _speak(self) -> None:
        self._generating.wait()
        due, index = self._clock() - AHEAD_FRAMES * FRAME_S, 0
        try:
            while not self.over.is_set():
                self._given_at.append((index, self._clock()))
                self._run.hear(self.sound_queue.take(SAMPLES_PER_FRAME))
                index += 1
                due += FRAME_S
                behind = self._clock() - due
                if behind > STOOD_S:
                    due += behind
                self.over.wait(max(0.0, -behind))
        except AvatarError as error:  # _follow reports it
            log.info("no more sound: %s", error.message)
