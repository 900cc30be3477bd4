"""An engine in a process of its own: `EngineProcess` starts `python -m avatar.runtime.engine_process FD`.

The page and the command line never render, open CUDA or load a model: a crash, a leak or a hang stays
in the child, which dies with its parent. Both sides talk in the dataclasses below over one socket pair.
"""

from __future__ import annotations

import importlib
import logging
import queue
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avatar.errors import AvatarError, WorkerLost
from avatar.events import Event, Finished, Progress, Segment
from avatar.request import Request
from avatar.runtime.child_process import REAP_S, Child, deaf_to_signals, kill_all
from avatar.runtime.engine import FrameSource
from avatar.runtime.report import MemoryUse
from avatar.runtime.scratch import writing_in
from avatar.runtime.worker_loop import Cancel, Ended, Run, Service, leave

if TYPE_CHECKING:
    from avatar.runtime.run_meter import RunMeter

log = logging.getLogger(__name__)

SILENCE_LIMIT_S = 60.0  # without a heartbeat for so long, the child is taken for hung
CANCEL_LIMIT_S = 20.0  # a cancelled run must have ended by then, its file closed
POLL_S = 0.25


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


class _Process:
    """The child of an EngineProcess. All that it says is read at once, whether or not a run goes on.

    Heartbeats and the label are kept here, everything else waits in messages; None there: it has hung up.
    """

    def __init__(self, opening: Open, env: Mapping[str, str]) -> None:
        """Raises: WorkerLost when no process can be started."""
        try:
            self._child = Child("avatar.runtime.engine_process", env=env)
        except OSError as error:
            raise WorkerLost(
                f"The engine's process cannot be started ({error.strerror}).",
                "Close other programs, and try again.",
            ) from error
        self.label = ""
        self.use: MemoryUse | None = None
        self.heard = time.monotonic()  # when it last said anything
        self.messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, name="engine", daemon=True)
        self.send(opening)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def alive(self) -> bool:
        return self._child.alive

    def send(self, message: Open | Run | Cancel) -> None:
        """One thread at a time. A child that is gone gets nothing: whoever reads is told that it is gone."""
        try:
            self._child.link.send(message)
        except OSError as error:
            log.debug("the engine's process hears nothing any more: %s", error)

    def fate(self) -> str:
        """How it ended, as the end of a sentence."""
        return self._child.fate()

    def end(self) -> None:
        """Kill it, and wait until it is gone."""
        kill_all([self._child], close_links=False)
        self._reader.join(REAP_S)

    def _read(self) -> None:
        try:
            while True:
                message = self._child.link.recv()
                self.heard = time.monotonic()
                if isinstance(message, Heartbeat):
                    self.use = message.use
                elif isinstance(message, Ready):
                    self.label = message.label
                else:
                    self.messages.put(message)
        except (EOFError, OSError):
            log.debug("the engine's process has hung up")
        except Exception:
            log.exception("a message of the engine's process cannot be read")
        finally:
            self._child.link.close()
            self.messages.put(None)


@dataclass
class _Current:
    """The run that goes on. process: None until it has been asked for. cancelled: when, if it was."""

    number: int
    process: _Process | None = None
    cancelled: float | None = None
    plan: dict[str, Any] | None = None
    progress: Progress | None = None  # the last
    segments: list[Segment] = field(default_factory=list)


class EngineProcess:
    """An Engine whose frames come from a FrameSource in a child process, kept warm between runs."""

    def __init__(self, source: str, gpus: Sequence[str] | None = None, **options: Any) -> None:
        """source: "package.module:Class" of the FrameSource; options go to its constructor, picklable.

        gpus: those that the child may see, as CUDA_VISIBLE_DEVICES names them; None: those seen here.
        """
        self._env = {} if gpus is None else {"CUDA_VISIBLE_DEVICES": ",".join(gpus)}
        self._open = Open(source, options, logging.getLogger().getEffectiveLevel())
        self._running = threading.Lock()  # one run at a time
        self._lock = threading.Lock()  # for what follows; nobody waits for the child while holding it
        self._process: _Process | None = None
        self._current: _Current | None = None
        self._num_runs = 0
        self.label = ""

    def warm(self) -> None:
        """Start the child without waiting for it, so that the first run does not pay for imports.

        Raises: WorkerLost when it cannot be started.
        """
        with self._lock:
            self._started()

    @property
    def pid(self) -> int | None:
        """The child's process id, None when there is none."""
        process = self._process
        return process.pid if process is not None and process.alive else None

    @property
    def pinned_bytes(self) -> int | None:
        """Page-locked memory that the child held at its last heartbeat; None before the first."""
        process = self._process
        if process is None or not process.alive:
            return 0
        return process.use.pinned_bytes if process.use else None

    def stream(self, request: Request) -> Iterator[Event]:
        """Events of one run; see Engine.stream. Raises: also WorkerLost, when the child dies or hangs."""
        if not self._running.acquire(blocking=False):
            raise AvatarError("The engine is busy with another video.", "Wait for it to end, or stop it.")
        try:
            with self._lock:
                self._num_runs += 1
                self._current = run = _Current(self._num_runs)
            yield from self._stream(request, run)
        finally:
            self._current = None
            self._running.release()

    def _stream(self, request: Request, run: _Current) -> Iterator[Event]:
        process = self._asked(request, run)
        ended: Ended | None = None
        try:
            while ended is None:
                message = self._receive(process, run)
                if isinstance(message, Begun):
                    run.plan = message.plan
                elif isinstance(message, Ended):
                    ended = message
                else:
                    if isinstance(message, Segment):
                        run.segments.append(message)
                    elif isinstance(message, Progress):
                        run.progress = message
                    yield message
        except WorkerLost as error:
            ended = Ended(run.number, error)
            kept = self._salvage(request, run, process, error)
            if kept is not None:
                yield kept
        finally:
            if ended is None:  # the caller closed the iterator: end the run, then be ready for the next
                self._drain(process, run)
        if ended.error is not None:
            raise ended.error

    def cancel(self) -> None:
        """End the run that is going on, if one is; its stream() then yields Finished(stopped=True)."""
        with self._lock:
            run = self._current
            if run is None or run.cancelled is not None:
                return
            run.cancelled = time.monotonic()
            if run.process is not None:  # else _asked sends it
                run.process.send(Cancel(run.number))

    def close(self) -> None:
        """End the child and all that it holds; a run that is going on ends with WorkerLost."""
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            process.end()

    def _started(self) -> _Process:
        """The child, a fresh one if there is none. The caller holds the lock."""
        if self._process is None or not self._process.alive:
            self._process = _Process(self._open, self._env)
        return self._process

    def _asked(self, request: Request, run: _Current) -> _Process:
        """Ask the child for a run, which may be cancelled already."""
        with self._lock:
            run.process = process = self._started()
            process.send(Run(run.number, request))
            if run.cancelled is not None:
                process.send(Cancel(run.number))
        return process

    def _receive(self, process: _Process, run: _Current) -> Any:
        """The next message from the child. Raises: WorkerLost."""
        while True:
            try:
                message = process.messages.get(timeout=POLL_S)
            except queue.Empty:
                now = time.monotonic()
                if now - process.heard > SILENCE_LIMIT_S:
                    raise self._lost(process, f"gave no sign of life for {SILENCE_LIMIT_S:.0f} s") from None
                if run.cancelled is not None and now - run.cancelled > CANCEL_LIMIT_S:
                    raise self._lost(process, f"did not stop within {CANCEL_LIMIT_S:.0f} s") from None
                continue
            if message is None:
                raise self._lost(process, process.fate())
            self.label = process.label
            return message

    def _lost(self, process: _Process, cause: str) -> WorkerLost:
        """The error for a child that is gone; makes sure that it is."""
        process.end()
        with self._lock:
            if self._process is process:
                self._process = None
        log.error("engine process lost: it %s", cause)
        return WorkerLost(f"The engine's process {cause}.", "Try again: a fresh one is started.")

    def _drain(self, process: _Process, run: _Current) -> None:
        """Cancel, then read up to the run's end; a child that does not end is killed."""
        self.cancel()
        try:
            while not isinstance(self._receive(process, run), Ended):
                pass
        except WorkerLost as error:
            log.warning("while stopping: %s", error)

    def _salvage(
        self, request: Request, run: _Current, process: _Process, error: WorkerLost
    ) -> Finished | None:
        """What was shown becomes a finished file, joined from the segments that are on disk."""
        from avatar.runtime.stream import finish_from_segments

        if not run.segments:
            return None
        return finish_from_segments(
            request,
            run.segments,
            error,
            label=process.label,
            progress=run.progress,
            plan=run.plan,
            memory=process.use,
        )


def serve(link: Connection) -> None:
    """The child's side: build the source, then run requests until the parent hangs up."""
    from avatar.runtime.run_meter import RunMeter

    opened = link.recv()
    logging.getLogger().setLevel(opened.log_level)
    module, name = opened.source.split(":")
    source: FrameSource | None = None

    def pinned() -> int:
        tell = getattr(source, "pinned_bytes", None)
        return 0 if tell is None else int(tell())

    meter = RunMeter(pinned)
    server = _Server(link, meter, opened.options.get("weights"))
    server.service.start(lambda: Heartbeat(meter.use))
    source = getattr(importlib.import_module(module), name)(**opened.options)
    server.service.send(Ready(source.label))
    for run in server.service.runs():
        server.make(source, run)
    leave()


class _Server:
    """The child's side of runs. A parent that is gone leaves it to keep what was made of the last one."""

    def __init__(self, link: Connection, meter: RunMeter, weights: Path | None) -> None:
        self.service = Service(link, on_hangup=self._hung_up)
        self._meter, self._weights = meter, weights
        self._keeping = False  # what is made now is worth keeping, also when nobody waits for it

    def make(self, source: FrameSource, run: Run) -> None:
        """One run, from its events to its end."""
        from avatar.runtime.stream import stream_frames

        error: AvatarError | None = None
        try:
            self._meter.restart()
            stopped, plan = partial(self.service.stopped, run), partial(self._begin, source, run)
            self._keeping = run.request.part is None  # a part that is not whole is made again
            with writing_in(run.request.work, run.request.output.parent):
                for event in stream_frames(source, run.request, stopped, plan=plan, use=self._meter.look):
                    self.service.send(event)
        except AvatarError as raised:
            error = raised
        except Exception:
            log.exception("the engine failed")
            error = AvatarError("The engine failed.", "The log of the server says why.")
        finally:
            self._keeping = False
        self.service.end(run, error)

    def _begin(self, source: FrameSource, run: Run) -> dict[str, Any] | None:
        from avatar.runtime.run_meter import planned

        stopped = partial(self.service.stopped, run)
        plan = planned(source, run.request, self._weights, stopped)
        self.service.send(Begun(run.run, plan))
        return plan

    def _hung_up(self) -> None:
        """The parent is gone, and with that the run is cancelled: its file is closed, then all is over."""
        if not self._keeping:
            leave()
        log.info("the parent is gone: what was made is kept")
        last = threading.Timer(CANCEL_LIMIT_S, leave)
        last.daemon = True
        last.start()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    deaf_to_signals()  # Ctrl-C is the parent's: it cancels, and the file is closed
    # This module's own classes belong to __main__ here; messages need those of the imported module.
    importlib.import_module("avatar.runtime.engine_process").serve(Connection(int(sys.argv[1])))
