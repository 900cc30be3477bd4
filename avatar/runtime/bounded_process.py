"""Run functions that open untrusted files in child processes with limited memory and time.

A damaged or hostile file can make a decoder use gigabytes, take minutes, or crash: then only its process
ends, and a fresh one replaces it. Processes start quickly, since nothing here loads torch.
"""

from __future__ import annotations

import logging
import math
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psutil

from avatar.errors import AvatarError, BadInput, Cancelled
from avatar.runtime.child_process import Child
from avatar.runtime.protocol import Link

try:
    import resource
except ImportError:  # on Windows the parent's timeout is the only limit
    resource = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

WALL = 4.0  # wall-clock seconds per second of a job's CPU limit, since the machine may be busy
START_S = 60.0  # limit for starting a process; normally it takes less than one second
LOOK_S = 0.1  # polling interval for cancelled jobs
FEW_WAITING = 16  # limit for waiting jobs of all visitors, since each blocks a server thread
CODE_BYTES = 512 * 2**20  # address space for the interpreter and its libraries, in addition to data
RETIRE_BYTES = 256 * 2**20  # a process with more resident memory than this after a job is replaced
ENV = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}


class Crowded(AvatarError):
    """The limit of waiting files is reached, for this visitor or for all."""

    def __init__(self) -> None:
        super().__init__("Too many files are being read.", "Please try again in a minute.")


class BoundedJob:
    """One call, created by BoundedProcesses.submit."""

    def __init__(
        self, function: Callable[..., Any], args: tuple[Any, ...], name: str, cpu_s: float, visitor: str
    ) -> None:
        self.function, self.args, self.name, self.cpu_s, self.visitor = function, args, name, cpu_s, visitor
        self.cancelled = threading.Event()
        self._over = threading.Event()
        self._value: Any = None
        self._error: BaseException | None = None

    def cancel(self) -> None:
        """Remove it from the queue, or kill its process if it is running. Safe at any time."""
        self.cancelled.set()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until it is over, for at most timeout_s; returns whether it is."""
        return self._over.wait(timeout_s)

    def result(self) -> Any:
        """Wait for the function's result. Raises: what it raised; BadInput when it exceeded the limits."""
        self._over.wait()
        if self._error is not None:
            raise self._error.with_traceback(None)  # it may be raised repeatedly
        return self._value

    @property
    def error(self) -> BaseException | None:
        """Why it failed; None if it did not, or is not over."""
        return self._error

    def end(self, value: Any = None, error: BaseException | None = None) -> None:
        """Store the outcome; called once, by the thread that runs the job."""
        self._value, self._error = value, error
        self._over.set()


class BoundedProcesses:
    """Runs jobs in child processes, one at a time per visitor; thread-safe."""

    def __init__(self, memory_bytes: int, places: int = 2, per_visitor: int = 8) -> None:
        """memory_bytes: data limit per process. places: processes. per_visitor: waiting jobs per visitor."""
        self.memory_bytes = memory_bytes
        self.per_visitor = per_visitor
        self._changed = threading.Condition()
        self._waiting: list[BoundedJob] = []
        self._running: Counter[str] = Counter()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"bounded-{number}", daemon=True)
            for number in range(places)
        ]
        for thread in self._threads:
            thread.start()

    def submit(
        self, function: Callable[..., Any], *args: Any, name: str, cpu_s: float, visitor: str = ""
    ) -> BoundedJob:
        """Queue function(*args) for a child; both must be picklable. Raises: Crowded.

        name: the file's name in messages. cpu_s: limit of CPU time.
        """
        job = BoundedJob(function, args, name, cpu_s, visitor)
        with self._changed:
            self._drop_cancelled()
            theirs = sum(waiting.visitor == visitor for waiting in self._waiting)
            if theirs >= self.per_visitor or len(self._waiting) >= FEW_WAITING:
                raise Crowded
            self._waiting.append(job)
            self._changed.notify()
        return job

    def close(self) -> None:
        """End all processes; unfinished jobs are cancelled."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        """A worker thread: run one job after another, in a process that is replaced when necessary."""
        child: Child | None = None
        while (job := self._next()) is not None:
            try:
                child = self._run(job, child)
            except Exception as error:
                log.exception("reading %s failed", job.name)
                job.end(error=error)
            finally:
                with self._changed:
                    self._running[job.visitor] -= 1
                    self._changed.notify_all()
        if child is not None:
            child.kill()

    def _next(self) -> BoundedJob | None:
        """Wait for the next job, at most one running per visitor; None once closed."""
        with self._changed:
            while not self._closed:
                self._drop_cancelled()
                for job in self._waiting:
                    if not self._running[job.visitor]:
                        self._waiting.remove(job)
                        self._running[job.visitor] += 1
                        return job
                self._changed.wait(LOOK_S if self._waiting else None)
            for job in self._waiting:
                job.end(error=Cancelled("The server is stopping."))
            self._waiting.clear()
            return None

    def _drop_cancelled(self) -> None:
        for job in [job for job in self._waiting if job.cancelled.is_set()]:
            self._waiting.remove(job)
            job.end(error=Cancelled("Nobody waits for it."))

    def _run(self, job: BoundedJob, child: Child | None) -> Child | None:
        """Run a job in the child, or in a new one; returns the child if it can take further jobs."""
        if child is None or not child.alive:
            child = Child("avatar.runtime.bounded_process", str(self.memory_bytes), env=ENV)
        deadline, answer = time.monotonic() + START_S, None
        try:
            child.link.send((job.function, job.args, job.name, job.cpu_s))
            while answer is None:
                late = time.monotonic() > deadline
                if late or job.cancelled.is_set() or self._closed:
                    child.kill()
                    job.end(error=_too_slow(job.name) if late else Cancelled("Nobody waits for it."))
                    return None
                if child.link.poll(LOOK_S):
                    answer = child.link.recv()
                    if answer is None:  # it has started
                        deadline = time.monotonic() + WALL * job.cpu_s
            value, error, stays = answer
        except (EOFError, OSError):
            fate = child.fate()
            log.warning("reading %s: its process %s", job.name, fate)
            job.end(error=_lost(job.name, fate))
            child.kill()
            return None
        job.end(value, error)
        if not stays:
            child.kill()
        return child if stays else None


def _too_slow(name: str) -> BadInput:
    return BadInput(f"{name} takes too long to read.", "Export it again, or choose another file.")


def _too_big(name: str) -> BadInput:
    return BadInput(f"{name} needs too much memory to be read.", "Scale it down, or choose another file.")


def _lost(name: str, fate: str) -> BadInput:
    """The error for the visitor when a process ended unexpectedly."""
    if "SIGXCPU" in fate:
        return _too_slow(name)
    if "SIGKILL" in fate:  # by the system, when it ran out of memory
        return _too_big(name)
    return BadInput(f"{name} is damaged: it cannot be read.", "Export it again, or choose another file.")


def serve(link: Link, memory_bytes: int) -> None:
    """The child's loop: run the calls that come over the link, within the limits, until it is closed."""
    _bound_memory(memory_bytes)
    stays = True
    while stays:
        try:
            function, args, name, cpu_s = link.recv()
        except EOFError:
            return
        link.send(None)
        _bound_time(cpu_s)
        value: Any = None
        error: BaseException | None = None
        try:
            value = function(*args)
        except (AvatarError, MemoryError) as raised:
            error = raised
        if error is not None and _was_memory(error):
            error, stays = _too_big(name), False
        stays = stays and _resident_bytes() < RETIRE_BYTES
        link.send((value, error, stays))


def _bound_memory(num_bytes: int) -> None:
    if resource is None:
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (num_bytes, num_bytes))
    with suppress(ValueError):  # macOS maps more than that before our code starts
        resource.setrlimit(resource.RLIMIT_AS, (num_bytes + CODE_BYTES, num_bytes + CODE_BYTES))


def _bound_time(cpu_s: float) -> None:
    """Limit this process's CPU time to cpu_s from now on."""
    if resource is None:
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    most = math.ceil(used.ru_utime + used.ru_stime + cpu_s)
    resource.setrlimit(resource.RLIMIT_CPU, (most, resource.RLIM_INFINITY))


def _was_memory(error: BaseException) -> bool:
    """Whether an error, or one in its chain of causes, is a MemoryError."""
    below: BaseException | None = error
    while below is not None:
        if isinstance(below, MemoryError):
            return True
        below = below.__cause__ or below.__context__
    return False


def _resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


def main() -> None:
    """`python -m avatar.runtime.bounded_process BYTES FD`: a child of BoundedProcesses."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which closes the link
    serve(Link(int(sys.argv[2])), int(sys.argv[1]))


if __name__ == "__main__":
    main()
