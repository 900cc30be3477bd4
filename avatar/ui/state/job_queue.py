"""The job queue: one run at a time. Takes the engine's events, gives each run's events; no Gradio here.

A run belongs to its visitor, not to the page that began it: any page may follow it and be closed.
However a run ends, the engine ends it cleanly, and the frames made are kept in the gallery.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import replace
from pathlib import Path

import numpy as np

from avatar.errors import AvatarError, Cancelled, NotPlaced
from avatar.events import Finished, PlanMade
from avatar.long.ledger import Ledger
from avatar.long.stream import LongVideo
from avatar.media.atomic import disk_error
from avatar.planning.plan import Plan
from avatar.preset import Preset
from avatar.request import Request
from avatar.runtime.engine import Engine, prepare, warm_up
from avatar.runtime.gallery import About, Gallery, GalleryEntry
from avatar.runtime.rescued_files import kept_in_words
from avatar.runtime.upscaled_video import UpscaledVideo
from avatar.ui.state.queued_run import KeptVideo, QueuedRun, Requester, RunningVoice, WaitingInQueue

log = logging.getLogger(__name__)

OpenEngine = Callable[[Preset], Engine]

MOST_ENDED = 200  # runs that are remembered after their end
CLOSE_LIMIT_S = 30.0  # the longest that closing waits for the cancelled run to be kept

__all__ = ["JobQueue", "KeptVideo", "QueueFull", "QueuedRun", "Requester", "WaitingInQueue", "about_request"]


class QueueFull(AvatarError):
    """The queue is full; yours: this visitor already has as many runs in it as allowed."""

    def __init__(self, count: int, yours: bool = False) -> None:
        full = f"You have {count} videos in the queue." if yours else f"The queue is full: {count} waiting."
        super().__init__(full, "Please try again in a few minutes.")
        self.count, self.yours = count, yours


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
        self.on_plan: Callable[[Plan], None] | None = None  # called with the plan, again after each rung
        self.upscale_with: tuple[str, ...] = ()  # words of the owner's command for upscale 1080p
        self._open_engine = open_engine
        self._engine: Engine | None = None
        self.place_of: Callable[[Preset], Hashable] = lambda preset: None  # where a preset's engine runs
        self._engine_models: Hashable = None  # which the open engine has loaded
        self._engine_process: Hashable = None  # what its process and place can serve
        self._waiting: list[QueuedRun] = []
        self._running: QueuedRun | None = None
        self._ended: deque[QueuedRun] = deque(maxlen=MOST_ENDED)  # only runs that have an owner
        self.on_end: Callable[[QueuedRun], None] | None = None  # called when a run is over
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
        """Page-locked memory of the engine's process; None if the engine does not report it."""
        engine = self._engine
        return 0 if engine is None else getattr(engine, "pinned_bytes", None)

    def check_not_full(self, visitor: str = "") -> None:
        """Check that the queue takes one more run. Raises: QueueFull."""
        if len(self._waiting) >= self.max_waiting:
            raise QueueFull(self.max_waiting)
        theirs = [
            run for run in self._alive() if run.requester.visitor == visitor and not run.cancelled.is_set()
        ]
        if self.per_visitor is not None and len(theirs) >= self.per_visitor:
            raise QueueFull(self.per_visitor, yours=True)

    def submit(
        self,
        request: Request,
        draft: Path,
        settings: dict[str, object],
        requester: Requester | None = None,
        ledger: Ledger | None = None,
        voice: RunningVoice | None = None,
    ) -> QueuedRun:
        """Append a request to the queue; draft: from gallery.draft(). Raises: QueueFull.

        ledger, voice: see QueuedRun.
        """
        run = QueuedRun(request, draft, settings, requester or Requester(), ledger, voice)
        with self._changed:
            self.check_not_full(run.requester.visitor)
            for earlier in [earlier for earlier in self._ended if earlier.id == run.id]:
                self._ended.remove(earlier)  # this run resumes it
            self._waiting.append(run)
            self._post_places()
            self._changed.notify_all()
        return run

    def warm(self, preset: Preset) -> None:
        """Open the engine for a preset before anyone asks, unless one is open; in the background."""
        with self._changed:
            if self._engine is None and self._running is None and not self._waiting:
                threading.Thread(target=self._warm, args=(preset,), name="warm-up", daemon=True).start()

    def prepare(self, portrait: np.ndarray, preset: Preset) -> None:
        """Let the engine get ready for a portrait, uint8 (H, W, 3) RGB, if it is open and idle."""
        with self._changed:
            engine = None if self._running is not None or self._waiting else self._engine
        if engine is not None and self._engine_models == preset.models:
            prepare(engine, portrait, preset)

    def close(self) -> None:
        """Cancel everything, wait until the current run is kept, and close the engine."""
        with self._changed:
            self._closed = True
            runs = self._alive()
            self._changed.notify_all()
        for run in runs:
            run.cancel()
        self._worker.join(CLOSE_LIMIT_S)
        self._close_engine()

    def stop(self, run: QueuedRun, wanted: bool = False) -> None:
        """Cancel a run, running or waiting. wanted: it can be resumed even if it has made nothing."""
        run.unwanted = run.unwanted or not wanted
        run.cancel()
        with self._changed:
            self._drop_cancelled()

    def runs(self, owner_hash: str | None = None) -> list[QueuedRun]:
        """An owner's runs, or all that have an owner: ended (newest first), running, waiting."""
        with self._changed:
            runs = [*reversed(self._ended), *self._alive()]
        return [
            run for run in runs if run.requester.owner_hash and owner_hash in (None, run.requester.owner_hash)
        ]

    def find(self, id: str, owner_hash: str) -> QueuedRun | None:
        """The owner's run of that id."""
        return next((run for run in self.runs(owner_hash) if run.id == id), None)

    def move(self, run: QueuedRun, place: int) -> None:
        """Move a waiting run to a place, from 0, among its owner's; other owners' runs keep their places."""
        with self._changed:
            owner = run.requester.owner_hash
            held = [at for at, one in enumerate(self._waiting) if one.requester.owner_hash == owner]
            theirs = [self._waiting[at] for at in held]
            if run not in theirs:
                return  # it is running by now
            theirs.remove(run)
            theirs.insert(min(max(place, 0), len(theirs)), run)
            for at, one in zip(held, theirs):
                self._waiting[at] = one
            self._post_places()

    def forget(self, run: QueuedRun) -> None:
        """Remove a run that has ended from the list; its video stays."""
        with self._changed:
            if run in self._ended:
                self._ended.remove(run)

    def _alive(self) -> list[QueuedRun]:
        """The running run and the waiting ones."""
        running = self._running
        return [*([running] if running else []), *self._waiting]

    def _work(self) -> None:
        while True:
            with self._changed:
                self._drop_cancelled()
                while not self._waiting and not self._closed:
                    self._changed.wait()
                    self._drop_cancelled()
                if self._closed and not self._waiting:
                    return
                run = self._running = self._waiting.pop(0)
                run.begun = True
                self._post_places()
            failure: Exception | None = None
            try:
                run.context.run(self._run, run)
            except AvatarError as error:
                failure = error
            except Exception as error:
                log.exception("a run failed")
                failure = error
            run.engine = None
            self._end(run, failure)

    def _drop_cancelled(self) -> None:
        for run in [run for run in self._waiting if run.cancelled.is_set()]:
            self._waiting.remove(run)
            self._end(run, Cancelled("Left the queue."))
        self._post_places()

    def _end(self, run: QueuedRun, failure: Exception | None) -> None:
        """Keep what a run has made, or remove its draft; then report the end to its followers."""
        if run.voice is not None:
            run.voice.close()
        try:
            if run.ledger is not None:
                run.ledger.close()
            if run.unwanted and not run.kept:
                self.gallery.discard(run.draft)
            elif not run.kept:
                self.gallery.set_aside(run.draft, None if run.cancelled.is_set() else _reason(failure))
        except (OSError, ValueError, TypeError):  # must not end the queue's thread: other runs are waiting
            log.exception("what is left of a run cannot be cleared away")
        if failure is not None:
            run.post_event(failure)
        with self._changed:
            if self._running is run:
                self._running = None
            if run.requester.owner_hash and not (run.unwanted and not run.kept):
                self._ended.append(run)
            run.over.set()
        run.let_go()
        if self.on_end is not None:
            self.on_end(run)

    def _post_places(self) -> None:
        ahead = 1 if self._running else 0
        for index, run in enumerate(self._waiting):
            run.post_event(WaitingInQueue(index + ahead))

    def _run(self, run: QueuedRun) -> None:
        """Pass the engine's events to the run; keep what was made. Raises: AvatarError if nothing was."""
        engine = self._engine_for(run.request.preset)
        if run.ledger is not None:
            engine = LongVideo([engine], run.ledger, keep_segments=True)
        engine = UpscaledVideo(engine, self.upscale_with)
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
                run.post_event(event)
        except NotPlaced as raised:
            error = self._kept_outside(run, raised)
        except AvatarError as raised:
            error = raised
        if finished is None:
            raise error or AvatarError("The engine ended without a video.", "Please try again.")
        if isinstance(error, Cancelled):
            error = None
        entry = self._keep(run, finished, getattr(engine, "label", ""))
        run.post_event(KeptVideo(entry, replace(finished, video=entry.video, report=entry.report), error))

    def _kept_outside(self, run: QueuedRun, error: NotPlaced) -> AvatarError:
        """Keep a video that could not be moved into the gallery; the log has its path, the page must not."""
        log.error("%s", kept_in_words(error, run.request.output))
        return AvatarError(error.message, "The server has kept it; ask its administrator.")

    def _keep(self, run: QueuedRun, finished: Finished, label: str) -> GalleryEntry:
        if run.ledger is not None:
            run.ledger.close()  # once in the gallery, another run may resume it at once
        about = replace(
            about_request(run.request, run.settings, run.requester.owner_hash),
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
        run.kept = True  # from now on, a draft of that name is another run's
        return entry

    def _engine_for(self, preset: Preset) -> Engine:
        """The open engine, if it serves this preset too; else a new one in its place. Raises: AvatarError."""
        with self._opening:
            process = preset.process, self.place_of(preset)
            serves = preset.models == self._engine_models or process == self._engine_process
            if self._engine is None or not serves:
                self._close_engine()
                self._engine = self._open_engine(preset)
                self._engine_process = process
            self._engine_models = preset.models
            return self._engine

    def _warm(self, preset: Preset) -> None:
        try:
            warm_up(self._engine_for(preset))
        except AvatarError as error:  # reported again, on a page, when a run needs the engine
            log.warning("the engine could not be opened ahead of time: %s", error)

    def _close_engine(self) -> None:
        """The caller holds _opening, or is close()."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None


def about_request(request: Request, settings: dict[str, object], owner_hash: str) -> About:
    """The gallery's record of a video that is still to be made."""
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


def _reason(failure: Exception | None) -> str | None:
    """Why a run made nothing, as its owner may read it."""
    return str(failure) if isinstance(failure, AvatarError) else "The engine failed."
