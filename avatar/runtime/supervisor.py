"""Processes that make frames, as whoever started them sees them: the engine's, and a group of ranks alike.

What they say is read in threads; they are asked for runs, one at a time, which may be cancelled; they are
taken for hung when they are silent for too long, and all are ended when one is lost.
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

POLL_S = 0.1  # so often it is looked whether a run has been cancelled
IDLE_S = 0.5  # between two looks at processes that have nothing to do
JOIN_S = 0.02
MAX_UNREAD = 8  # messages that wait for the consumer; frames are large, and those who send them wait, too


@dataclass(frozen=True)
class HungUp:
    """Nothing more comes over a link."""


class Supervised(ABC):
    """Processes at the other ends of links; one thread at a time. Once one is lost all are, for good."""

    def __init__(self) -> None:
        self._inbox: queue.Queue[tuple[Connection, Any]] = queue.Queue(MAX_UNREAD)
        self._readers: list[threading.Thread] = []
        self._waiting: deque[Any] = deque()
        self._sending = threading.Lock()
        self._listened = time.monotonic()

    @property
    @abstractmethod
    def links(self) -> Sequence[Connection]:
        """Runs are asked for over the first. None once all have been ended."""

    @property
    @abstractmethod
    def alive(self) -> bool:
        """Whether a run may be asked for."""

    @abstractmethod
    def end(self) -> None:
        """End all of them, whatever they are doing; what they held is free then."""

    def leave(self) -> None:
        """No more runs will be asked for."""
        self.end()

    @abstractmethod
    def _take(self, message: Any) -> None:
        """Note what a message says; what is for the consumer goes to _waiting. Raises: AvatarError."""

    @abstractmethod
    def _hung_up(self, link: Connection) -> None:
        """A link has ended. Raises: AvatarError."""

    @abstractmethod
    def _check(self, now: float, away_s: float) -> None:
        """Raises: AvatarError when one is silent for too long; nobody listened for the last away_s."""

    @abstractmethod
    def _stopping(self) -> None:
        """A run is about to be cancelled. Raises: AvatarError where that would take too long."""

    @abstractmethod
    def _not_stopped(self, limit_s: float) -> AvatarError:
        """The error for a run that did not end in time after it was cancelled; all have been ended."""

    def send(self, message: Any) -> None:
        """Say something to the first; any thread may. Raises: AvatarError when it is gone."""
        for link in self.links[:1]:
            try:
                with self._sending:
                    link.send(message)
            except OSError:
                self._hung_up(link)

    def receive(self) -> Any:
        """The next message, None when none comes in POLL_S. Raises: AvatarError when one is lost."""
        self._hear(None if self._waiting else POLL_S)
        return self._waiting.popleft() if self._waiting else None

    def listen_idle(self) -> None:
        """Read what was said while no run goes on. Raises: AvatarError when one is lost."""
        self._hear(0.0)
        self._waiting.clear()

    def unread(self) -> Iterator[Any]:
        """What had come before they were lost, and was not received."""
        while self._waiting:
            yield self._waiting.popleft()

    def follow(
        self, run: Run, cancelled: Callable[[], bool], limit_s: float, to_the_end: bool = False
    ) -> Iterator[Any]:
        """Ask for a run; what is said until it has ended, None where nothing is for a while.

        cancelled: asked all the time; a run must end within limit_s after that. Closing the iterator cancels.
        to_the_end: also what is said after it was cancelled. Raises: the run's error; AvatarError when one is
        lost.
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
        """Returns when it was."""
        self._stopping()
        self.send(Cancel(run.run))
        return time.monotonic()

    def _drain(self, run: Run, since: float | None, limit_s: float) -> None:
        """The consumer has left: cancel, and listen until the run has ended."""
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
        """Read what comes in that time, if one is given. Raises: AvatarError when one is lost."""
        away_s = time.monotonic() - self._listened
        if timeout_s is not None:
            self._listen(timeout_s)
        self._listened = time.monotonic()
        self._check(self._listened, away_s)

    def _listen(self, timeout_s: float) -> None:
        """Take what has come; wait so long for the first of it."""
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
        """Have all that comes over a link read in a thread: one may stop in the midst of a message."""

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
        """The links have been ended: what came before that is kept for unread()."""
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
    """Listens to processes between their runs: what they say is read, and one that is lost is seen at once.

    busy: held by whoever else listens to them.
    """

    def __init__(self, current: Callable[[], Supervised | None]) -> None:
        """current: the processes that there are now, if any."""
        self.busy = threading.Lock()
        self._current, self._closed = current, threading.Event()
        self._thread = threading.Thread(target=self._listen, name="idle", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Listen no more."""
        self._closed.set()
        self._thread.join()

    def _listen(self) -> None:
        while not self._closed.wait(IDLE_S):
            if not self.busy.acquire(blocking=False):
                continue
            try:
                processes = self._current()
                if processes is not None and processes.links:  # one may be dead by now
                    processes.listen_idle()
            except AvatarError as error:
                log.warning("while idle: %s", error)
            finally:
                self.busy.release()
