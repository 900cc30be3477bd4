"""Supervise processes that make frames, both an engine's process and a group of ranks, from their parent.

Their messages are read in threads. They make one run at a time, which may be cancelled. They count as hung
when they are silent for too long, and all are ended when one is lost.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from avatar.errors import AvatarError
from avatar.runtime.protocol import Cancel, Ended, Run

log = logging.getLogger(__name__)

POLL_S = 0.1  # interval between checks whether a run was cancelled
IDLE_S = 0.5  # interval between checks of idle processes
JOIN_S = 0.02
MAX_UNREAD = 8  # messages waiting for the consumer; frames are large, so their senders are held back


@dataclass(frozen=True)
class HungUp:
    """A link has been closed."""


class Supervised(ABC):
    """Processes at the other ends of links, used by one thread at a time. When one is lost, all are ended."""

    def __init__(self) -> None:
        self._inbox: queue.Queue[tuple[Connection, Any]] = queue.Queue(MAX_UNREAD)
        self._readers: list[threading.Thread] = []
        self._waiting: deque[Any] = deque()
        self._sending = threading.Lock()
        self._listened = time.monotonic()

    @property
    @abstractmethod
    def links(self) -> Sequence[Connection]:
        """Runs are requested over the first link. Empty once all processes have been ended."""

    @property
    @abstractmethod
    def alive(self) -> bool:
        """Whether a run may be requested."""

    @abstractmethod
    def end(self) -> None:
        """End all of them, whatever they are doing; afterwards their resources are free."""

    def leave(self) -> None:
        """Release the processes: no more runs will be requested."""
        self.end()

    @abstractmethod
    def _take(self, message: Any) -> None:
        """Handle a message; those for the consumer go to _waiting. Raises: AvatarError."""

    @abstractmethod
    def _hung_up(self, link: Connection) -> None:
        """Handle a closed link. Raises: AvatarError."""

    @abstractmethod
    def _check(self, now: float, away_s: float) -> None:
        """Raises: AvatarError when one was silent for too long, not counting away_s without listening."""

    @abstractmethod
    def _stopping(self) -> None:
        """Called before a run is cancelled. Raises: AvatarError if cancelling would take too long."""

    @abstractmethod
    def _not_stopped(self, limit_s: float) -> AvatarError:
        """The error for a run that did not end in time after being cancelled; all have been ended."""

    def send(self, message: Any) -> None:
        """Send a message over the first link; thread-safe. Raises: AvatarError when it is gone."""
        for link in self.links[:1]:
            try:
                with self._sending:
                    link.send(message)
            except OSError:
                self._hung_up(link)

    def receive(self) -> Any:
        """The next message, None if none comes within POLL_S. Raises: AvatarError when one is lost."""
        self._hear(None if self._waiting else POLL_S)
        return self._waiting.popleft() if self._waiting else None

    def listen_idle(self) -> None:
        """Read and discard messages between runs. Raises: AvatarError when one is lost."""
        self._hear(0.0)
        self._waiting.clear()

    def unread(self) -> Iterator[Any]:
        """Messages that arrived before the processes were lost, and were not received."""
        while self._waiting:
            yield self._waiting.popleft()

    def follow(
        self, run: Run, cancelled: Callable[[], bool], limit_s: float, to_the_end: bool = False
    ) -> Iterator[Any]:
        """Request a run, and yield messages until it has ended; None when there are none for a while.

        cancelled: polled; once True, the run must end within limit_s. Closing the iterator cancels.
        to_the_end: also yield messages after cancelling. Raises: the run's error; AvatarError when a process
        is lost.
        """
        ended, since = False, None
        try:
            self.send(run)
            while True:
                if since is None and cancelled():
                    since = self._cancel(run)
                message = self.receive()
                if isinstance(message, Ended) and message.run == run.run:
                    ended = True
                    if message.error is not None:
                        raise message.error
                    return
                if since is not None and time.monotonic() - since > limit_s:
                    self.end()
                    raise self._not_stopped(limit_s)
                if since is None or to_the_end:
                    yield message
        finally:
            if not ended and self.alive:
                self._drain(run, since, limit_s)

    def _cancel(self, run: Run) -> float:
        """Cancel a run; returns the time."""
        self._stopping()
        self.send(Cancel(run.run))
        return time.monotonic()

    def _drain(self, run: Run, since: float | None, limit_s: float) -> None:
        """After the consumer has left: cancel, and listen until the run has ended."""
        try:
            since = self._cancel(run) if since is None else since
            while time.monotonic() - since < limit_s:
                message = self.receive()
                if isinstance(message, Ended) and message.run == run.run:
                    return
            self.end()
            log.error("%s", self._not_stopped(limit_s))
        except AvatarError as error:
            log.warning("while stopping: %s", error)

    def _hear(self, timeout_s: float | None) -> None:
        """Read messages for timeout_s, unless None, then check for hangs. Raises: AvatarError."""
        away_s = time.monotonic() - self._listened
        if timeout_s is not None:
            self._listen(timeout_s)
        self._listened = time.monotonic()
        self._check(self._listened, away_s)

    def _listen(self, timeout_s: float) -> None:
        """Handle waiting messages; wait up to timeout_s for the first."""
        for _ in range(MAX_UNREAD):
            try:
                link, message = self._inbox.get(timeout=timeout_s) if timeout_s else self._inbox.get_nowait()
            except queue.Empty:
                return
            timeout_s = 0.0
            if isinstance(message, HungUp):
                self._hung_up(link)
            else:
                self._take(message)

    def _read(self, link: Connection) -> None:
        """Read a link in a thread, since its process may hang in the middle of a message."""

        def read() -> None:
            try:
                while True:
                    self._inbox.put((link, link.recv()))
            except (EOFError, OSError):
                log.debug("a link has ended")
            except Exception:
                log.exception("a message cannot be read")
            self._inbox.put((link, HungUp()))

        reader = threading.Thread(target=read, name="read", daemon=True)
        self._readers.append(reader)
        reader.start()

    def _stop_reading(self) -> None:
        """Join the readers after the links were closed, keeping earlier messages for unread()."""
        for reader in self._readers:
            while reader.is_alive():
                self._keep_unread()
                reader.join(JOIN_S)
        self._keep_unread()
        self._readers.clear()

    def _keep_unread(self) -> None:
        while True:
            try:
                _, message = self._inbox.get_nowait()
            except queue.Empty:
                return
            if not isinstance(message, HungUp):
                self._waiting.append(message)


class IdleListener:
    """Listens to processes between runs: reads their messages, and notices the loss of one immediately.

    busy: a lock held by anyone else who listens to them.
    """

    def __init__(self, current: Callable[[], Supervised | None]) -> None:
        """current: returns the current processes, if any."""
        self.busy = threading.Lock()
        self._current, self._closed = current, threading.Event()
        self._thread = threading.Thread(target=self._listen, name="idle", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._closed.set()
        self._thread.join()

    def _listen(self) -> None:
        while not self._closed.wait(IDLE_S):
            if not self.busy.acquire(blocking=False):
                continue
            try:
                processes = self._current()
                if processes is not None and processes.links:  # one may have died by now
                    processes.listen_idle()
            except AvatarError as error:
                log.warning("while idle: %s", error)
            finally:
                self.busy.release()
