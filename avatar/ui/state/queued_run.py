"""One run of the queue: its events, kept so that any number of pages may follow it at any time."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Iterator
from contextvars import copy_context
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from avatar.errors import AvatarError, Cancelled
from avatar.events import Event, Finished, Notice, Progress, Segment
from avatar.long.ledger import Ledger
from avatar.request import Request
from avatar.runtime.engine import Engine
from avatar.runtime.gallery import GalleryEntry
from avatar.runtime.gallery_entry import DRAFT

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WaitingInQueue:
    """The run is waiting in the queue: place 1 is next."""

    place: int


@dataclass(frozen=True)
class KeptVideo:
    """The last event of a run that made frames; error: why it ended early, unless its user stopped it."""

    entry: GalleryEntry
    finished: Finished
    error: AvatarError | None = None


JobEvent = Event | WaitingInQueue | KeptVideo | BaseException


@dataclass(frozen=True)
class Requester:
    """Who asked for a run, and which inputs to show them when they come back.

    owner_hash: of the browser that owns it, "" for nobody's. visitor: whose limit it counts towards. visit:
    the page that began it. portrait, speech: the uploads that it was begun with.
    """

    owner_hash: str = ""
    visitor: str = ""
    visit: str = ""
    portrait: Path | None = None
    speech: Path | None = None


class RunningVoice(Protocol):
    """A text's voice, as a run that ends needs it."""

    def cancel(self) -> None:
        """Let it end soon."""

    def close(self) -> None:
        """End it, and remove its files."""


@dataclass(eq=False)
class QueuedRun:
    """One request in the queue; created by JobQueue.submit.

    draft: its folder in the gallery. ledger: of a long video, which is made in parts. voice: of a text that
    is still being spoken; it ends with the run.
    """

    request: Request
    draft: Path
    settings: dict[str, object]
    requester: Requester = field(default_factory=Requester)
    ledger: Ledger | None = None
    voice: RunningVoice | None = None

    def __post_init__(self) -> None:
        self.kept = False  # it is in the gallery
        self.begun = False  # it has left the queue for the engine
        self.unwanted = False  # stopped by its user: not kept if it was not begun
        self.outcome: KeptVideo | BaseException | None = None
        self.ended = 0.0  # by time.monotonic
        self.cancelled = threading.Event()
        self.context = copy_context()  # ZeroGPU reads from it whose run this is
        self.over = threading.Event()
        self.engine: Engine | None = None
        self.progress: Progress | None = None
        self.place = 0
        self._users = 2  # of the work folder: the queue, and the code that submitted the run
        self._leaving = threading.Lock()
        self._log: list[JobEvent] = []  # all but progress, of which only the newest matters
        self._num_progress = 0
        self._news = threading.Condition()

    @property
    def id(self) -> str:
        """The video's id in the gallery, now or later."""
        return self.draft.name.removeprefix(DRAFT)

    @property
    def state(self) -> str:
        """waiting | running | done | stopped | failed."""
        if self.outcome is None:
            return "running" if self.begun else "waiting"
        if isinstance(self.outcome, KeptVideo):
            if self.outcome.error is not None:
                return "failed"
            return "stopped" if self.outcome.finished.stopped else "done"
        return "stopped" if isinstance(self.outcome, Cancelled) else "failed"

    @property
    def error(self) -> BaseException | None:
        """Why it ended early; None if its user stopped it."""
        ended = self.outcome.error if isinstance(self.outcome, KeptVideo) else self.outcome
        return None if isinstance(ended, Cancelled) else ended

    def post_event(self, what: JobEvent) -> None:
        """Add an event; called by the queue."""
        with self._news:
            match what:
                case Progress():
                    self.progress = what
                    self._num_progress += 1
                case _:
                    self._log.append(what)
            match what:
                case WaitingInQueue(place):
                    self.place = place
                case KeptVideo() | BaseException():
                    self.outcome, self.ended = what, time.monotonic()
            self._news.notify_all()

    def follow(self, every_s: float = 0.4, newest: int | None = None) -> Iterator[JobEvent | None]:
        """The run's events as they come; None whenever there was none for every_s.

        newest: at most this many of the segments made already; None: all. Notices are never left out.
        Raises: AvatarError that ended the run before any frame (Cancelled: by its user), or any other error.
        """
        begin, seen = 0, 0
        if newest is not None:
            before, begin = self._from_now(newest)
            yield from before
        while True:
            event, begin, seen = self._next(begin, seen, every_s)
            if event is None and self.over.is_set() and begin == len(self._log):
                return
            if isinstance(event, BaseException):
                raise event
            yield event
            if isinstance(event, KeptVideo):
                return

    def _from_now(self, newest: int) -> tuple[list[JobEvent], int]:
        """Earlier events that still matter, and the index in the log to continue from."""
        with self._news:
            segments = [at for at, event in enumerate(self._log) if isinstance(event, Segment)]
            begin = segments[-newest:][0] if segments else len(self._log)
            if self.outcome is not None:
                begin = min(begin, len(self._log) - 1)
            before: list[JobEvent] = [event for event in self._log[:begin] if isinstance(event, Notice)]
            return [WaitingInQueue(0 if self.begun else self.place), *before], begin

    def _next(self, begin: int, seen: int, every_s: float) -> tuple[JobEvent | None, int, int]:
        """The next event of the log from begin on, or a newer progress than that seen; None after every_s."""
        end = time.monotonic() + every_s
        with self._news:
            while True:
                if begin < len(self._log):
                    return self._log[begin], begin + 1, seen
                if seen < self._num_progress:
                    return self.progress, begin, self._num_progress
                left = end - time.monotonic()
                if left <= 0:
                    return None, begin, seen
                self._news.wait(left)

    def join(self) -> bool:
        """Share the work folder until let_go; False if it was removed already."""
        with self._leaving:
            if self._users == 0:
                return False
            self._users += 1
            return True

    def let_go(self) -> None:
        """Stop using the work folder; each user calls it once, and the last call removes the folder."""
        with self._leaving:
            self._users -= 1
            if self._users == 0:
                try:
                    shutil.rmtree(self.request.work)
                except FileNotFoundError:
                    log.debug("a run's folder is gone already")
                except OSError:  # it will be removed with the whole scratch folder
                    log.exception("a run's folder cannot be removed")

    def cancel(self) -> None:
        """Take it out of the queue, or stop it; safe at any time, from any thread."""
        self.cancelled.set()
        if self.voice is not None:
            self.voice.cancel()
        engine = self.engine
        if engine is not None:
            engine.cancel()
