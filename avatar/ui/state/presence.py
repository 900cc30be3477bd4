"""Which owners have a page open, and when each was last seen."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

MOST = 10_000  # pages, and owners, that are remembered


class Presence:
    """Pages by visit, owners by hash; safe to use from several threads.

    A page counts from its opening to its closing. One that lost its network may be open still, though it was
    reported closed: its owner counts as seen with each of its requests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begin = clock()
        self._open: OrderedDict[str, str] = OrderedDict()  # owner by visit
        self._seen: OrderedDict[str, float] = OrderedDict()  # by owner
        self._lock = threading.Lock()

    def opened(self, visit: str, owner_hash: str) -> None:
        """An owner has opened a page."""
        with self._lock:
            self._open[visit] = owner_hash
            _bound(self._open)
            self._see(owner_hash)

    def seen(self, owner_hash: str) -> None:
        """A page of an owner asked for something."""
        with self._lock:
            self._see(owner_hash)

    def closed(self, visit: str) -> None:
        """A page is gone."""
        with self._lock:
            owner = self._open.pop(visit, None)
            if owner is not None:
                self._see(owner)

    def away_s(self, owner_hash: str) -> float:
        """For how many seconds an owner has had no page open; 0 while one is open."""
        with self._lock:
            if owner_hash in self._open.values():
                return 0.0
            return self._clock() - self._seen.get(owner_hash, self._begin)

    def _see(self, owner_hash: str) -> None:
        self._seen[owner_hash] = self._clock()
        self._seen.move_to_end(owner_hash)
        _bound(self._seen)


def _bound(known: OrderedDict[str, object] | OrderedDict[str, str] | OrderedDict[str, float]) -> None:
    while len(known) > MOST:
        known.popitem(last=False)
