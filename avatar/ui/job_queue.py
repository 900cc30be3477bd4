"""The job queue: one run at a time. Engines' events in, a run's events out; no Gradio here.

A run belongs to the queue, not to the page that asked for it: when the page goes away the run is cancelled,
the engine ends it in order, and what was made is still kept in the gallery.
"""

from __future__ import annotations

import logging
import queue
import shutil
import threading
from collections.abc import Callable, Hashable, Iterator
from contextvars import copy_context
from dataclasses import dataclass, replace
from pathlib import Path

from avatar.errors import AvatarError, Cancelled, NotPlaced
from avatar.events import Event, Finished, PlanMade
from avatar.long.ledger import Ledger
from avatar.long.stream import LongVideo
from avatar.media.atomic import disk_error
from avatar.planning.plan import Plan
from avatar.preset import Preset
from avatar.request import Request
from avatar.runtime.engine import Engine
from avatar.runtime.gallery import About, Gallery, GalleryEntry
from avatar.runtime.rescued_files import kept_in_words

log = logging.getLogger(__name__)

OpenEngine = Callable[[Preset], Engine]


@dataclass(frozen=True)
class WaitingInLine:
    """The run stands in line: place 1 is next."""

    place: int


@dataclass(frozen=True)
class KeptVideo:
    """The last that a run says when frames were made; error tells why it ended early, if not by its user."""

    entry: GalleryEntry
    finished: Finished
    error: AvatarError | None = None


class LineFull(AvatarError):
    """As many runs are waiting as the queue takes, or, yours, as it takes of one visitor."""

    def __init__(self, count: int, yours: bool = False) -> None:
        full = f"You have {count} videos in line." if yours else f"The line is full: {count} waiting."
        super().__init__(full, "Please try again in a few minutes.")
        self.count, self.yours = count, yours


class QueuedRun:
    """One request on its way; made by Acceptor.submit."""

    def __init__(
        self,
        request: Request,
        draft: Path,
        settings: dict[str, object],
        owner_hash: str,
        ledger: Ledger | None = None,
        visitor: str = "",
    ) -> None:
        self.request = request
        self.visitor = visitor
        self.ledger = ledger
        self.draft = draft
        self.settings = settings
        self.owner_hash = owner_hash
        self.kept = False  # in the gallery
        self.cancelled = threading.Event()
        self.context = copy_context()  # whoever lends a GPU asks it whose run this is
        self.over = threading.Event()
        self._users = 2  # of the work folder: the queue, and whoever follows
        self._leaving = threading.Lock()
        self.engine: Engine | None = None
        self._said: queue.Queue[Event | WaitingInLine | KeptVideo | BaseException] = queue.Queue()

    def say(self, what: Event | WaitingInLine | KeptVideo | BaseException) -> None:
        """Called by the queue."""
        self._said.put(what)

    def follow(self, every_s: float = 0.4) -> Iterator[Event | WaitingInLine | KeptVideo | None]:
        """What the run says, as it says it; None whenever it was silent for every_s.

        Raises: AvatarError that ended the run before any frame (Cancelled: its user), or a fault as it is.
        """
        while True:
            try:
                said = self._said.get(timeout=every_s)
            except queue.Empty:
                if self.over.is_set() and self._said.empty():
                    return
                yield None
                continue
            if isinstance(said, BaseException):
                raise said
            yield said
            if isinstance(said, KeptVideo):
                return

    def let_go(self) -> None:
        """Called by queue and follower, once each, when done with the work folder; the second removes it."""
        with self._leaving:
            self._users -= 1
            if self._users == 0:
                try:
                    shutil.rmtree(self.request.work)
                except FileNotFoundError:
                    log.debug("a run's folder is gone already")
                except OSError:  # it goes with the whole scratch folder
                    log.exception("a run's folder cannot be removed")

    def cancel(self) -> None:
        """Take it out of the line, or stop it; safe at any time, from any thread."""
        self.cancelled.set()
        engine = self.engine
        if engine is not None:
            engine.cancel()


class JobQueue:
    """Takes requests, runs them one by one on one engine, and keeps the results in the gallery."""

    def __init__(
        self,
        open_engine: OpenEngine,
        gallery: Gallery,
        max_waiting: int = 8,
        per_visitor: int | None = None,
    ) -> None:
        """per_visitor: runs of one visitor that may wait or go on; None: no such limit."""
        self.gallery = gallery
        self.max_waiting = max_waiting
        self.per_visitor = per_visitor
        self.on_start: Callable[[], None] | None = None  # called when a run's turn has come
        self.on_plan: Callable[[Plan], None] | None = None  # what the run will hold, on each of its rungs
        self._open_engine = open_engine
        self._engine: Engine | None = None
        self._engine_models: Hashable = None  # what the open engine serves
        self._line: list[QueuedRun] = []
        self._running: QueuedRun | None = None
        self._changed = threading.Condition()
        self._opening = threading.Lock()
        self._closed = False
        self._worker = threading.Thread(target=self._work, name="queue", daemon=True)
        self._worker.start()

    @property
    def running(self) -> QueuedRun | None:
        """The run that has the engine now."""
        return self._running

    @property
    def pinned_bytes(self) -> int | None:
        """Page-locked memory of the engine's process; None where the engine does not tell."""
        engine = self._engine
        return 0 if engine is None else getattr(engine, "pinned_bytes", None)

    def check_room(self, visitor: str = "") -> None:
        """Raises: LineFull."""
        if len(self._line) >= self.max_waiting:
            raise LineFull(self.max_waiting)
        runs = [*self._line, *([self._running] if self._running else [])]
        theirs = [run for run in runs if run.visitor == visitor and not run.cancelled.is_set()]
        if self.per_visitor is not None and len(theirs) >= self.per_visitor:
            raise LineFull(self.per_visitor, yours=True)

    def submit(
        self,
        request: Request,
        draft: Path,
        settings: dict[str, object],
        owner_hash: str = "",
        ledger: Ledger | None = None,
        visitor: str = "",
    ) -> QueuedRun:
        """Put a request at the end of the line; draft is what gallery.draft() gave. Raises: LineFull.

        ledger: of a long video, which is made in parts. visitor: whose place it takes.
        """
        run = QueuedRun(request, draft, settings, owner_hash, ledger, visitor)
        with self._changed:
            self.check_room(visitor)
            self._line.append(run)
            self._tell_places()
            self._changed.notify_all()
        return run

    def warm(self, preset: Preset) -> None:
        """Open the engine for a preset before anyone asks, unless one is open; in the background."""
        with self._changed:
            if self._engine is None and self._running is None and not self._line:
                threading.Thread(target=self._warm, args=(preset,), name="warm-up", daemon=True).start()

    def close(self) -> None:
        """Cancel everything, wait for the run that is going on to be kept, and close the engine."""
        with self._changed:
            self._closed = True
            runs = [*self._line, *([self._running] if self._running else [])]
            self._changed.notify_all()
        for run in runs:
            run.cancel()
        self._worker.join(timeout=30)
        self._close_engine()

    def stop(self, run: QueuedRun) -> None:
        """Cancel a run, wherever it stands."""
        run.cancel()
        with self._changed:
            self._drop_cancelled()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._drop_cancelled()
                while not self._line and not self._closed:
                    self._changed.wait()
                    self._drop_cancelled()
                if self._closed and not self._line:
                    return
                run = self._running = self._line.pop(0)
                self._tell_places()
            failure: Exception | None = None
            try:
                run.context.run(self._run, run)
            except AvatarError as error:
                failure = error
            except Exception as error:
                log.exception("a run failed")
                failure = error
            self._running = None
            run.engine = None
            self._end(run, failure)

    def _drop_cancelled(self) -> None:
        for run in [run for run in self._line if run.cancelled.is_set()]:
            self._line.remove(run)
            self._end(run, Cancelled("Left the line."))
        self._tell_places()

    def _end(self, run: QueuedRun, failure: Exception | None) -> None:
        """Whatever is left of a run goes to the gallery, or goes; then its follower learns why."""
        try:
            if run.ledger is not None:
                run.ledger.close()
            if not run.kept:
                self.gallery.discard(run.draft)
        except OSError:  # a disk that fails must not end the queue's thread: the others are still in line
            log.exception("what is left of a run cannot be cleared away")
        if failure is not None:
            run.say(failure)
        run.over.set()
        run.let_go()

    def _tell_places(self) -> None:
        ahead = 1 if self._running else 0
        for index, run in enumerate(self._line):
            run.say(WaitingInLine(index + ahead))

    def _run(self, run: QueuedRun) -> None:
        """Pump the engine's events into the run; keep what was made. Raises: AvatarError when nothing was."""
        engine = self._engine_for(run.request.preset)
        if run.ledger is not None:
            engine = LongVideo([engine], run.ledger, keep_segments=True)
        if run.cancelled.is_set():
            raise Cancelled("Stopped before the first frame.")
        run.engine = engine
        if self.on_start is not None:
            self.on_start()
        finished: Finished | None = None
        error: AvatarError | None = None
        try:
            for event in engine.stream(run.request):
                if run.cancelled.is_set():  # cancel() may have come before the engine had begun
                    engine.cancel()
                if isinstance(event, Finished):
                    finished = event
                    continue
                if isinstance(event, PlanMade):
                    if self.on_plan is not None:
                        self.on_plan(event.plan)
                    continue
                run.say(event)
        except NotPlaced as raised:
            error = self._kept_outside(run, raised)
        except AvatarError as raised:
            error = raised
        if finished is None:
            raise error or AvatarError("The engine ended without a video.", "Please try again.")
        if isinstance(error, Cancelled):
            error = None
        entry = self._keep(run, finished, getattr(engine, "label", ""))
        run.say(KeptVideo(entry, replace(finished, video=entry.video, report=entry.report), error))

    def _kept_outside(self, run: QueuedRun, error: NotPlaced) -> AvatarError:
        """Keep a video that found no room among the others; the log names its place, the page must not."""
        log.error("%s", kept_in_words(error, run.request.output))
        return AvatarError(error.message, "The server keeps it; ask who runs it.")

    def _keep(self, run: QueuedRun, finished: Finished, label: str) -> GalleryEntry:
        if run.ledger is not None:
            run.ledger.close()  # from the gallery, another run may take it up at once
        about = replace(
            about_request(run.request, run.settings, run.owner_hash),
            label=label,
            num_frames=finished.num_frames,
            duration_s=finished.duration_s,
            stopped=finished.stopped,
            error=finished.error,
        )
        try:
            entry = self.gallery.keep(run.draft, about)
        except OSError as error:
            raise disk_error(error) from error
        run.kept = True  # a draft of that name from now on is another run's
        return entry

    def _engine_for(self, preset: Preset) -> Engine:
        """The open engine, if it serves this preset too; else a new one in its place. Raises: AvatarError."""
        key = preset.models
        with self._opening:
            if self._engine is None or self._engine_models != key:
                self._close_engine()
                self._engine = self._open_engine(preset)
                self._engine_models = key
            return self._engine

    def _warm(self, preset: Preset) -> None:
        try:
            engine = self._engine_for(preset)
            warm = getattr(engine, "warm", None)
            if warm is not None:
                warm()
        except AvatarError as error:  # reported again, to somebody, when a run needs it
            log.warning("the engine could not be opened ahead of time: %s", error)

    def _close_engine(self) -> None:
        """The caller holds _opening, or is the last."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None


def about_request(request: Request, settings: dict[str, object], owner_hash: str) -> About:
    """What the gallery should know of a video that is still to be made."""
    return About(
        portrait=request.portrait_name,
        speech=request.speech_name,
        prompt=request.prompt,
        preset=request.preset.name,
        label="preview" if request.preset.engine == "preview" else "",
        settings=dict(settings),
        num_frames=0,
        duration_s=0.0,
        stopped=True,
        owner_hash=owner_hash,
    )
