"""Ctrl-C, said politely."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def stopped_by_signals(cancel: Callable[[], None]) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) ends the run in good order; a second one ends the program."""
    before: dict[int, Any] = {}

    def stop(number: int, _frame: Any) -> None:
        for one, handler in before.items():
            signal.signal(one, handler)
        # In a thread: this one may hold the engine's lock.
        threading.Thread(target=cancel, daemon=True).start()

    for signal_number in (signal.SIGINT, signal.SIGTERM):
        before[signal_number] = signal.signal(signal_number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
