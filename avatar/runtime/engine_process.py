"""An engine in a subprocess: EngineProcess is the parent's side, `python -m …engine_process FD` the child's.

The page and the command line never render, open CUDA or load a model: crashes, leaks and hangs are confined
to the child, which ends with its parent.
"""

from __future__ import annotations

import importlib
import logging
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from avatar.errors import AvatarError, WorkerLost
from avatar.events import Event
from avatar.planning.plan import Plan
from avatar.preset import Preset
from avatar.request import LiveRequest, Request
from avatar.runtime.child_process import Child, ignore_ending_signals, kill_all
from avatar.runtime.engine import FrameSource
from avatar.runtime.live_protocol import LiveFrames, LiveRun
from avatar.runtime.protocol import Heartbeat, Link, Prepare, Ready, Run, RunLive, StartEngine
from avatar.runtime.report import MemoryUse
from avatar.runtime.scratch import writing_in
from avatar.runtime.shown_segments import ShownSegments
from avatar.runtime.supervisor import IdleListener, Supervised
from avatar.runtime.worker_loop import Service, leave

if TYPE_CHECKING:
    from avatar.runtime.run_meter import RunMeter

log = logging.getLogger(__name__)

SILENCE_LIMIT_S = 60.0  # without a heartbeat for longer than this, the child counts as hung
CANCEL_LIMIT_S = 20.0  # time for a cancelled run to close its file and end
LISTENING_S = 1.0  # the longest that the idle listener holds its lock


class _Child(Supervised):
    """The subprocess of an EngineProcess. label, use: as last reported."""

    def __init__(self, opening: StartEngine, env: Mapping[str, str]) -> None:
        """Raises: WorkerLost when no process can be started."""
        super().__init__()
        try:
            self._child = Child("avatar.runtime.engine_process", env=env)
        except OSError as error:
            raise WorkerLost(
                f"The engine's process cannot be started ({error.strerror}).",
                "Close other programs, and try again.",
            ) from error
        self.label = ""
        self.use: MemoryUse | None = None
        self._heard = time.monotonic()
        self._ended = False
        self._ending = threading.Lock()
        self._read(self._child.link)
        try:
            self._child.link.send(opening)
        except OSError:  # it has already ended, which the reading thread reports
            log.debug("the engine's process does not hear its start")

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def links(self) -> Sequence[Connection]:
        """See Supervised."""
        return [] if self._ended else [self._child.link]

    @property
    def alive(self) -> bool:
        """See Supervised."""
        return not self._ended and self._child.alive

    def end(self) -> None:
        """See Supervised. May be called from any thread."""
        self._ended = True
        with self._ending:
            kill_all([self._child], close_links=False)
            self._stop_reading()
            self._child.link.close()

    def _take(self, message: Any) -> None:
        """See Supervised."""
        self._heard = time.monotonic()
        if isinstance(message, Heartbeat):
            self.use = message.use
        elif isinstance(message, Ready):
            self.label = message.label
        else:
            self._waiting.append(message)

    def _hung_up(self, link: Connection) -> None:
        """See Supervised."""
        raise self._lost(self._child.fate())

    def _check(self, now: float, away_s: float) -> None:
        """See Supervised."""
        self._heard = min(now, self._heard + away_s)
        if self._ended:
            raise WorkerLost("The engine's process has been ended.", "Try again: a fresh one is started.")
        if now - self._heard > SILENCE_LIMIT_S:
            raise self._lost(f"gave no sign of life for {SILENCE_LIMIT_S:.0f} s")

    def _stopping(self) -> None:
        """See Supervised."""

    def _not_stopped(self, limit_s: float) -> AvatarError:
        """See Supervised."""
        return self._lost(f"did not stop within {limit_s:.0f} s")

    def _lost(self, cause: str) -> WorkerLost:
        """End the child, and return the error for its loss."""
        self.end()
        log.error("engine process lost: it %s", cause)
        return WorkerLost(f"The engine's process {cause}.", "Try again: a fresh one is started.")


class EngineProcess:
    """An Engine whose FrameSource runs in a child process, which is kept warm between runs."""

    def __init__(self, source: str, gpus: Sequence[str] | None = None, **options: Any) -> None:
        """source: "package.module:Class" of the FrameSource; options: picklable, for its constructor.

        gpus: those visible to the child, as CUDA_VISIBLE_DEVICES names them; None: those visible here.
        """
        self._env = {} if gpus is None else {"CUDA_VISIBLE_DEVICES": ",".join(gpus)}
        self._open = StartEngine(source, options, logging.getLogger().getEffectiveLevel())
        self._starting = threading.Lock()
        self._child: _Child | None = None
        self._cancelled: threading.Event | None = None  # of the current run
        self._num_runs = 0
        self._idle = IdleListener(lambda: self._child)
        self.label = ""

    def warm(self) -> None:
        """Start the child without waiting for it, so that the first run does not wait for imports.

        Raises: WorkerLost when it cannot be started.
        """
        self._started()

    def prepare(self, portrait: np.ndarray, preset: Preset, live: bool = False) -> None:
        """See Prepare; without effect while the engine is busy, or without its process."""
        child = self._child
        if child is None or not child.alive or self._idle.busy.locked():
            return
        try:
            child.send(Prepare(portrait, preset, live))
        except AvatarError as error:  # the next run starts a fresh process
            log.warning("while idle: %s", error)

    @property
    def pid(self) -> int | None:
        """The child's process id; None without a child."""
        child = self._child
        return child.pid if child is not None and child.alive else None

    @property
    def pinned_bytes(self) -> int | None:
        """Page-locked memory that the child held at its last heartbeat; None before the first."""
        child = self._child
        if child is None or not child.alive:
            return 0
        return child.use.pinned_bytes if child.use else None

    def stream(self, request: Request) -> Iterator[Event]:
        """Events of one run; see Engine.stream. Also raises WorkerLost, when the child dies or hangs."""
        if not self._idle.busy.acquire(timeout=LISTENING_S):
            raise AvatarError("The engine is busy with another video.", "Wait for it to end, or stop it.")
        try:
            self._cancelled = cancelled = threading.Event()
            self._num_runs += 1
            yield from self._stream(Run(self._num_runs, request), cancelled)
        finally:
            self._cancelled = None
            self._idle.busy.release()

    def _stream(self, run: Run, cancelled: threading.Event) -> Iterator[Event]:
        child, shown = self._started(), ShownSegments()
        try:
            for message in child.follow(run, cancelled.is_set, CANCEL_LIMIT_S, to_the_end=True):
                self.label = child.label
                yield from shown.note(message)
        except WorkerLost as error:
            if child.alive:  # it lost its ranks, but saved the video itself
                raise
            for message in child.unread():
                yield from shown.note(message)
            yield from shown.salvaged(run.request, error, child.label, child.use)
            raise

    def live(self, request: LiveRequest) -> LiveRun:
        """Begin a live session. Raises: AvatarError when the engine is busy; WorkerLost."""
        if not self._idle.busy.acquire(timeout=LISTENING_S):
            raise AvatarError("The engine is busy with another video.", "Wait for it to end, or stop it.")
        try:
            self._num_runs += 1
            return LiveRun(
                self._started(), RunLive(self._num_runs, request), CANCEL_LIMIT_S, self._idle.busy.release
            )
        except BaseException:
            self._idle.busy.release()
            raise

    def cancel(self) -> None:
        """End the current run, if any; its stream() then yields Finished(stopped=True)."""
        cancelled = self._cancelled
        if cancelled is not None:
            cancelled.set()

    def close(self) -> None:
        """End the child and free its memory; a current run ends with WorkerLost."""
        self._idle.close()
        with self._starting:
            child, self._child = self._child, None
        if child is not None:
            child.end()

    def _started(self) -> _Child:
        """The child, started if necessary. Raises: WorkerLost."""
        with self._starting:
            if self._child is not None and not self._child.alive:
                self._child.end()
                self._child = None
            if self._child is None:
                self._child = _Child(self._open, self._env)
            return self._child


def serve(link: Link) -> None:
    """The child's main loop: build the source, then run requests until the parent closes the link."""
    from avatar.runtime.run_meter import RunMeter

    opened = link.recv()
    logging.getLogger().setLevel(opened.log_level)
    module, name = opened.source.split(":")
    source: FrameSource | None = None

    def pinned() -> int:
        read = getattr(source, "pinned_bytes", None)
        return 0 if read is None else int(read())

    meter = RunMeter(pinned)
    server = _Server(link, meter, opened.options.get("weights"))
    server.service.start(lambda: Heartbeat(meter.use))
    source = getattr(importlib.import_module(module), name)(**opened.options)
    server.service.send(Ready(source.label))
    for asked in server.service.asked():
        if isinstance(asked, Run):
            server.make(source, asked)
        elif isinstance(asked, Prepare):
            server.prepare(source, asked)
    leave()


class _Server:
    """Runs requests in the child. When the parent has died, it still saves the frames of the current run."""

    def __init__(self, link: Link, meter: RunMeter, weights: Path | None) -> None:
        self.service = Service(link, on_hangup=self._hung_up)
        self._meter, self._weights = meter, weights
        self._keeping = False  # whether the current run is saved when the parent dies

    def make(self, source: FrameSource, run: Run) -> None:
        """Run one request: send its events, then its end."""
        error: AvatarError | None = None
        try:
            self._meter.restart()
            if isinstance(run, RunLive):
                self._live(source, run)
            else:
                self._stream(source, run, run.request)
        except AvatarError as raised:
            error = raised
        except Exception:
            log.exception("the engine failed")
            error = AvatarError("The engine failed.", "The log of the server says why.")
        finally:
            self._keeping = False
        self.service.end(run, error)

    def prepare(self, source: FrameSource, asked: Prepare) -> None:
        """Let the source get ready for a portrait, if it can."""
        get_ready = getattr(source, "prepare", None)
        if get_ready is None:
            return
        try:
            get_ready(asked.portrait, asked.preset, asked.live)
        except AvatarError as error:  # the request that brings the portrait reports it
            log.info("a portrait is not ready: %s", error)
        except Exception:
            log.exception("a portrait cannot be got ready")

    def _stream(self, source: FrameSource, run: Run, request: Request) -> None:
        from avatar.runtime.stream import stream_frames

        stopped, plan = partial(self.service.stopped, run), partial(self._planned, source, run, request)
        self._keeping = request.part is None  # an incomplete part is generated again
        with writing_in(request.work, request.output.parent):
            for event in stream_frames(source, request, stopped, plan=plan, use=self._meter.look):
                self.service.send(event)

    def _live(self, source: FrameSource, run: RunLive) -> None:
        from avatar.runtime.stream import compositor_of

        follow = getattr(source, "live", None)
        if follow is None:
            raise AvatarError("This engine cannot follow live speech.", "Choose a live preset.")
        stopped, compositor = partial(self.service.stopped, run), compositor_of(run.request)
        for made in follow(run.request, self.service.sound.of(run.run, stopped), stopped):
            if compositor is not None and isinstance(made, LiveFrames):
                made = replace(made, frames=compositor.apply(made.frames))
            self.service.send(made)

    def _planned(self, source: FrameSource, run: Run, request: Request) -> Plan | None:
        from avatar.runtime.run_meter import planned

        return planned(source, request, self._weights, partial(self.service.stopped, run))

    def _hung_up(self) -> None:
        """The parent has died, which cancels the run: let it close its file, then exit."""
        if not self._keeping:
            leave()
        log.info("the parent is gone: what was made is kept")
        last = threading.Timer(CANCEL_LIMIT_S, leave)
        last.daemon = True
        last.start()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    ignore_ending_signals()  # the parent handles Ctrl-C: it cancels the run, so that its file is closed
    # Import the module by name: run as __main__, its classes would differ from those in pickled messages.
    importlib.import_module("avatar.runtime.engine_process").serve(Link(int(sys.argv[1])))
