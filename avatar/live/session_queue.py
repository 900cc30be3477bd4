"""Queue of live sessions: one running session per engine, the other visitors wait."""

from __future__ import annotations

import logging
import secrets
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from avatar.errors import AvatarError
from avatar.live.session import LiveEngine, LiveSession
from avatar.request import LiveRequest

log = logging.getLogger(__name__)

UNWATCHED_S = 30.0  # a session or queue place without a connection for this long ends
LOOK_S = 0.5
PER_MINUTE = 12  # sessions that one visitor may request
TOKEN_BYTES = 24


class LiveQueueFull(AvatarError):
    """The queue is full, or this visitor has reached a limit. key: of the page's text for it."""

    def __init__(self, key: str, message: str, remedy: str) -> None:
        super().__init__(message, remedy)
        self.key = key


@dataclass
class Ticket:
    """A visitor's right to one session. token: secret, known only to that visitor. owner: see Gallery."""

    token: str
    request: LiveRequest
    visitor: str
    owner: str
    watched_at: float
    num_connected: int = 0
    session: LiveSession | None = None
    engine: LiveEngine | None = None
    error: AvatarError | None = None
    is_over: bool = False


class LiveSessionQueue:
    """Queues visitors, starts sessions in order, and ends those without a connection; thread-safe."""

    def __init__(
        self,
        engines: Sequence[LiveEngine],
        *,
        most_waiting: int = 8,
        per_visitor: int = 2,
        unwatched_s: float = UNWATCHED_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """engines: one per concurrent session, reused between sessions; the caller closes them.

        per_visitor: limit on sessions and queue places together.
        """
        self._engines, self._most_waiting = engines, most_waiting
        self._per_visitor, self._unwatched_s, self._clock = per_visitor, unwatched_s, clock
        self._tickets: dict[str, Ticket] = {}
        self._waiting: list[Ticket] = []
        self._asked: dict[str, deque[float]] = {}
        self._lock = threading.RLock()
        self._closed = threading.Event()
        self._tidier = threading.Thread(target=self._tidy, name="live-queue", daemon=True)
        self._tidier.start()

    def check_not_full(self, visitor: str) -> None:
        """Check that a visitor may have another session. Raises: LiveQueueFull."""
        with self._lock:
            now, asked = self._clock(), self._asked.setdefault(visitor, deque(maxlen=PER_MINUTE))
            if len(asked) == PER_MINUTE and now - asked[0] < 60.0:
                raise LiveQueueFull(
                    "live_too_often",
                    "You have requested too many sessions.",
                    "Please try again in a minute.",
                )
            if sum(one.visitor == visitor for one in self._tickets.values()) >= self._per_visitor:
                raise LiveQueueFull(
                    "live_yours", "You have a live session already.", "End it, or close its page."
                )
            if len(self._waiting) >= self._most_waiting:
                raise LiveQueueFull(
                    "live_full", "The queue for live sessions is full.", "Please try again in a few minutes."
                )

    def ask(self, request: LiveRequest, visitor: str = "", owner: str = "") -> Ticket:
        """Queue a request; its session starts once an engine is free. Raises: LiveQueueFull."""
        with self._lock:
            self.check_not_full(visitor)
            self._asked[visitor].append(self._clock())
            ticket = Ticket(secrets.token_hex(TOKEN_BYTES), request, visitor, owner, self._clock())
            self._tickets[ticket.token] = ticket
            self._waiting.append(ticket)
            self._begin_next()
            return ticket

    @property
    def free_engine(self) -> LiveEngine | None:
        """The engine that the next session gets; None if all are taken."""
        with self._lock:
            taken = [one.engine for one in self._tickets.values()]
            return next((engine for engine in self._engines if engine not in taken), None)

    def find(self, token: str) -> Ticket | None:
        """The ticket of a token; None when there is none or it is over."""
        ticket = self._tickets.get(token)
        return None if ticket is None or ticket.is_over else ticket

    def place(self, ticket: Ticket) -> int:
        """Position in the queue, from 1; 0 once the session has started."""
        with self._lock:
            return self._waiting.index(ticket) + 1 if ticket in self._waiting else 0

    def connected(self, ticket: Ticket) -> None:
        """Note that the visitor has opened a connection, waiting or watching."""
        with self._lock:
            ticket.num_connected += 1

    def left(self, ticket: Ticket) -> None:
        """Note that one of the visitor's connections is closed."""
        with self._lock:
            ticket.num_connected -= 1
            ticket.watched_at = self._clock()

    def end(self, ticket: Ticket) -> None:
        """End a ticket and its session, and start the next one."""
        with self._lock:
            if ticket.is_over:
                return
            ticket.is_over = True
            if ticket in self._waiting:
                self._waiting.remove(ticket)
        if ticket.session is not None:
            ticket.session.end()
        shutil.rmtree(ticket.request.work, ignore_errors=True)
        with self._lock:
            self._tickets.pop(ticket.token, None)
            self._begin_next()

    def close(self) -> None:
        """End all sessions."""
        self._closed.set()
        self._tidier.join()
        for ticket in list(self._tickets.values()):
            self.end(ticket)

    def _is_past(self, asked: deque[float]) -> bool:
        """Whether these requests are too old to count."""
        return not asked or self._clock() - asked[-1] > 60.0

    def _begin_next(self) -> None:
        """Start queued sessions on free engines; the caller holds the lock."""
        while self._waiting and not self._closed.is_set():
            free = self.free_engine
            if free is None:
                return
            ticket = self._waiting.pop(0)
            try:
                ticket.session, ticket.engine = LiveSession(free, ticket.request), free
            except AvatarError as error:
                ticket.error = error
                log.warning("a live session could not begin: %s", error)

    def _tidy(self) -> None:
        while not self._closed.wait(LOOK_S):
            with self._lock:
                for visitor in [one for one, asked in self._asked.items() if self._is_past(asked)]:
                    del self._asked[visitor]
            for ticket in list(self._tickets.values()):
                session = ticket.session
                if ticket.num_connected:
                    ticket.watched_at = self._clock()
                unwatched = self._clock() - ticket.watched_at > self._unwatched_s
                if unwatched or (session is not None and session.over.is_set()):
                    self.end(ticket)
