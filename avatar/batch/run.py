"""Run a batch, several entries at a time: each becomes a video or a failure, which stops no other entry."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from avatar.batch.engines import Engines
from avatar.batch.jobs import BatchEntry
from avatar.errors import AvatarError, Cancelled, NotPlaced
from avatar.events import Event, Finished
from avatar.hardware.inventory import Inventory
from avatar.media.background.choice import suffix_of
from avatar.runtime.engine import Engine
from avatar.runtime.rescued_files import kept_in_words

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """The outcome of an entry. state: done | already | stopped | failed. video: None if there is none."""

    name: str
    state: str
    video: Path | None = None
    num_frames: int = 0
    elapsed_s: float = 0.0
    error: AvatarError | None = None


class Batch:
    """One run of a batch; cancel() may be called from another thread."""

    def __init__(
        self,
        entries: Sequence[BatchEntry],
        output: Path,
        work: Path,
        inventory: Inventory,
        *,
        resume: bool,
        upscale_with: tuple[str, ...] = (),
        may_grow: bool = True,
    ) -> None:
        """upscale_with, may_grow: see Job."""
        self._may_grow = may_grow
        self._entries, self._output, self._work = entries, output, work
        self._inventory, self._resume, self._upscale_with = inventory, resume, upscale_with
        self._cancelled = threading.Event()
        self._running: dict[str, Engine] = {}

    def run(
        self, engines: Engines, num_jobs: int, on_event: Callable[[str, Event | Outcome], None]
    ) -> list[Outcome]:
        """Make all videos, num_jobs at a time; on_event gets every event and outcome, from any thread."""

        def one(entry: BatchEntry) -> Outcome:
            outcome = self._outcome(entry, engines, on_event)
            on_event(entry.name, outcome)
            return outcome

        with ThreadPoolExecutor(num_jobs, "batch") as pool:
            return list(pool.map(one, self._entries))

    def cancel(self) -> None:
        """Cancel the running jobs gracefully, and start no more."""
        self._cancelled.set()
        for engine in list(self._running.values()):
            engine.cancel()

    def _outcome(
        self, entry: BatchEntry, engines: Engines, on_event: Callable[[str, Event | Outcome], None]
    ) -> Outcome:
        begun, name = time.monotonic(), entry.name
        finished: Finished | None = None
        error: AvatarError | None = None

        def follow(event: Event) -> None:
            nonlocal finished
            if isinstance(event, Finished):
                finished = event
            on_event(name, event)

        try:
            video = self._make(entry, engines, follow)
            if video is not None:
                return Outcome(name, "already", video, elapsed_s=time.monotonic() - begun)
        except NotPlaced as raised:
            error = kept_in_words(raised, self._output / f"{name}{suffix_of(entry.picture.background)}")
        except AvatarError as raised:
            error = raised
        except Exception:
            log.exception("job %s failed", name)
            error = AvatarError("The job failed.", "The log says why.")
        elapsed_s = time.monotonic() - begun
        if error is not None and not isinstance(error, Cancelled):
            video = finished.video if finished else None
            return Outcome(name, "failed", video, finished.num_frames if finished else 0, elapsed_s, error)
        if finished is None:
            return Outcome(name, "stopped", elapsed_s=elapsed_s)
        state = "stopped" if finished.stopped else "done"
        return Outcome(name, state, finished.video, finished.num_frames, elapsed_s)

    def _make(self, entry: BatchEntry, engines: Engines, on_event: Callable[[Event], None]) -> Path | None:
        """Make one video; returns its path if it existed already. Raises: AvatarError."""
        if self._cancelled.is_set():
            raise Cancelled("Stopped.")
        job = entry.job(self._output, self._inventory, self._resume).upscaled_with(self._upscale_with)
        job = replace(job, may_grow=self._may_grow)
        with job.opened(self._work / entry.name) as opened:
            if opened.finished is not None:
                return opened.finished
            spread = opened.ledger is not None and not opened.ledger.chained
            with engines.borrow(job.preset, all_idle=spread) as borrowed:
                self._running[entry.name] = engine = opened.engine(borrowed)
                try:
                    for event in engine.stream(opened.request):
                        if self._cancelled.is_set():  # perhaps before the engine had started
                            engine.cancel()
                        on_event(event)
                finally:
                    del self._running[entry.name]
        return None
