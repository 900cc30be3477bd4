"""Tell a session's watchers when a service has let them wait for some time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from avatar.events import Notice
from avatar.live.session import LiveSession

SLOW_S = 6.0


@contextmanager
def reported_if_slow(session: LiveSession, notice: Notice) -> Iterator[None]:
    """Send a notice to the watchers if the block takes longer than SLOW_S."""
    timer = threading.Timer(SLOW_S, session.post_notice, [notice])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
