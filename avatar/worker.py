"""An engine in a process of its own: `EngineProcess` here, `python -m avatar.worker FD` there.

The page and the command line never render, open CUDA or load a model: a crash, a leak or a hang stays
in the child, which dies with its parent. Both sides talk in the dataclasses below over one socket pair.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from avatar.child import Child, deaf_to_signals
from avatar.engine import FrameSource
from avatar.errors import AvatarError, WorkerLost
from avatar.events import Event, Finished, Progress, Segment
from avatar.media.report import MemoryUse
from avatar.request import Request
from avatar.service import Cancel, Ended, Run, Service

log = logging.getLogger(__name__)

SILENCE_LIMIT_S = 60.0  # without a heartbeat for so long, the child is taken for hung
CANCEL_LIMIT_S = 20.0  # a cancelled run must have ended by then, its file closed


@dataclass(frozen=True)
class Open:
    """First message to the child: which FrameSource to build, and how much to log."""

    source: str  # "package.module:Class"
    options: dict[str, Any] = field(default_factory=dict)
    log_level: int = logging.INFO


@dataclass(frozen=True)
class Ready:
    """The source is built; label is what its output is called."""

    label: str


@dataclass(frozen=True)
class Heartbeat:
    """A sign of life; use: of the run that goes on, or of the last one."""

    use: MemoryUse


@dataclass(frozen=True)
class Begun:
    """A run's turn has come; plan: for its report."""

    run: int
    plan: dict[str, Any] | None


class EngineProcess:
    """An Engine whose frames come from a FrameSource in a child process, kept warm between runs."""

    def __init__(self, source: str, gpus: Sequence[str] | None = None, **options: Any) -> None:
        """source: "package.module:Class" of the FrameSource; options go to its constructor, picklable.

        gpus: those that the child may see, as CUDA_VISIBLE_DEVICES names them; None: those seen here.
        """
        self._gpus = {} if gpus is None else {"CUDA_VISIBLE_DEVICES": ",".join(gpus)}
        self._open = Open(source, options, logging.getLogger().getEffectiveLevel())
        self._running = threading.Lock()
        self._sending = threading.Lock()
        self._child: Child | None = None
        self._run = 0
        self._cancel_sent: float | None = None
        self._plan: dict[str, Any] | None = None  # of the run that goes on
        self._progress: Progress | None = None  # of it, the last
        self._use: MemoryUse | None = None
        self.label = ""

    def warm(self) -> None:
        """Start the child without waiting for it, so that the first run does not pay for imports."""
        with self._sending:
            if self._child is None or not self._child.alive:
                self._start()

    @property
    def pid(self) -> int | None:
        """The child's process id, None when there is none."""
        child = self._child
        return child.pid if child is not None and child.alive else None

    @property
    def pinned_bytes(self) -> int | None:
        """Page-locked memory that the child held at its last heartbeat; None before the first."""
        if self.pid is None:
            return 0
        return self._use.pinned_bytes if self._use else None

    def stream(self, request: Request) -> Iterator[Event]:
        """Events of one run; see Engine.stream. Raises: also WorkerLost, when the child dies or hangs."""
        if not self._running.acquire(blocking=False):
            raise AvatarError("The engine is busy with another video.", "Wait for it to end, or stop it.")
        try:
            yield from self._stream(request)
        finally:
            self._running.release()

    def _stream(self, request: Request) -> Iterator[Event]:
        self.warm()
        self._run += 1
        self._cancel_sent = self._plan = self._progress = None
        ended: Ended | None = None
        segments: list[Segment] = []
        try:
            self._send(Run(self._run, request))
            while ended is None:
                message = self._receive()
                if isinstance(message, Ready):
                    self.label = message.label
                elif isinstance(message, Heartbeat):
                    self._use = message.use
                elif isinstance(message, Begun):
                    self._plan = message.plan
                elif isinstance(message, Ended):
                    if message.run == self._run:
                        ended = message
                else:
                    if isinstance(message, Segment):
                        segments.append(message)
                    elif isinstance(message, Progress):
                        self._progress = message
                    yield message
        except WorkerLost as error:
            ended = Ended(self._run, error)
            kept = self._salvage(request, segments, error)
            if kept is not None:
                yield kept
        finally:
            if ended is None:  # the caller closed the iterator: end the run, then be ready for the next
                self._drain()
        if ended.error is not None:
            raise ended.error

    def cancel(self) -> None:
        """End the run that is going on, if one is; its stream() then yields Finished(stopped=True)."""
        if self._running.locked() and self._cancel_sent is None:
            self._cancel_sent = time.monotonic()
            with contextlib.suppress(WorkerLost):  # a child that is gone has stopped
                self._send(Cancel(self._run))

    def close(self) -> None:
        """End the child and all that it holds; a run that is going on ends with WorkerLost."""
        with self._sending:
            self._kill()

    def _start(self) -> None:
        self._child, self._use = Child("avatar.worker", env=self._gpus), None
        self._child.link.send(self._open)

    def _send(self, message: Run | Cancel) -> None:
        with self._sending:
            try:
                assert self._child is not None
                self._child.link.send(message)
            except OSError as error:
                raise self._lost() from error

    def _receive(self) -> Any:
        """The next message from the child. Raises: WorkerLost."""
        child = self._child
        if child is None:
            raise self._lost()
        silent_since = time.monotonic()
        while True:
            try:
                if child.link.poll(0.25):
                    return child.link.recv()
            except (EOFError, OSError) as error:
                raise self._lost() from error
            now = time.monotonic()
            if now - silent_since > SILENCE_LIMIT_S:
                raise self._lost(f"gave no sign of life for {SILENCE_LIMIT_S:.0f} s")
            if self._cancel_sent and now - self._cancel_sent > CANCEL_LIMIT_S:
                raise self._lost(f"did not stop within {CANCEL_LIMIT_S:.0f} s")

    def _lost(self, cause: str = "") -> WorkerLost:
        """The error for a child that is gone; makes sure that it is."""
        child = self._child
        if not cause and child is not None:
            cause = child.fate()
        with self._sending:
            self._kill()
        log.error("engine process lost: it %s", cause)
        return WorkerLost(f"The engine's process {cause or 'is gone'}.", "Try again: a fresh one is started.")

    def _kill(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None

    def _drain(self) -> None:
        """Cancel, then read up to the run's end; a child that does not end is killed."""
        self.cancel()
        try:
            while True:
                message = self._receive()
                if isinstance(message, Ended) and message.run == self._run:
                    return
        except WorkerLost as error:
            log.warning("while stopping: %s", error)

    def _salvage(self, request: Request, segments: list[Segment], error: WorkerLost) -> Finished | None:
        """What was shown becomes a finished file, joined from the segments that are on disk."""
        from avatar.media.stream import finish_from_segments

        if not segments:
            return None
        return finish_from_segments(
            request,
            segments,
            error,
            label=self.label,
            progress=self._progress,
            plan=self._plan,
            memory=self._use,
        )


def serve(link: Connection) -> None:
    """The child's side: build the source, then run requests until the parent hangs up."""
    from avatar.media.stream import stream_frames
    from avatar.memory.meter import Meter, planned

    opened = link.recv()
    logging.getLogger().setLevel(opened.log_level)
    module, name = opened.source.split(":")
    source: FrameSource | None = None

    def pinned() -> int:
        tell = getattr(source, "pinned_bytes", None)
        return 0 if tell is None else int(tell())

    def begin(run: Run) -> dict[str, Any] | None:
        stopped = partial(service.stopped, run)
        plan = planned(built, run.request, opened.options.get("weights"), stopped)
        service.send(Begun(run.run, plan))
        return plan

    meter, service = Meter(pinned), Service(link)
    service.start(lambda: Heartbeat(meter.use))
    source = built = getattr(importlib.import_module(module), name)(**opened.options)
    service.send(Ready(built.label))
    for run in service.runs():
        error: AvatarError | None = None
        try:
            meter.restart()
            stopped, plan = partial(service.stopped, run), partial(begin, run)
            for event in stream_frames(built, run.request, stopped, plan=plan, use=meter.look):
                service.send(event)
        except AvatarError as told:
            error = told
        except Exception:
            log.exception("the engine failed")
            error = AvatarError("The engine failed.", "The log of the server says why.")
        service.end(run, error)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    deaf_to_signals()  # Ctrl-C is the parent's: it cancels, and the file is closed
    # This module's own classes are those of __main__ here: the messages are those of avatar.worker.
    importlib.import_module("avatar.worker").serve(Connection(int(sys.argv[1])))
