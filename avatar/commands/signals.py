"""Turn SIGINT, SIGTERM and SIGHUP into a graceful stop: finished frames are kept, temporary files removed."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from avatar.errors import Cancelled
from avatar.runtime.child_process import ENDING, HANGUP

AGAIN_S = 1.0  # a second SIGINT sooner than this is the first one, forwarded by a launcher


class StopSignal(KeyboardInterrupt):
    """Raised by a signal that ends the program. number: the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@dataclass
class Stop:
    """The signal that stopped a run, if any."""

    number: int | None = None

    @property
    def exit_code(self) -> int:
        """128 plus the signal's number, as shells report it."""
        return Cancelled.exit_code if self.number is None else 128 + self.number


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP raise StopSignal, so that folders are removed on exit, as by Ctrl-C.

    Every later one is ignored until the program has ended.
    """

    def end(number: int, _frame: FrameType | None) -> None:
        for other in ENDING:
            signal.signal(other, signal.SIG_IGN)
        raise StopSignal(number)

    with _handled(end, tuple(number for number in ENDING if number != signal.SIGINT)):
        yield


@contextmanager
def stopped_by_signals(cancel: Callable[[], None]) -> Iterator[Stop]:
    """The first signal ends the run gracefully; a second Ctrl-C, more than AGAIN_S later, ends the program.

    Other signals may arrive twice by themselves: `timeout` sends SIGTERM to its child and to the group; when
    a terminal closes, kernel and shell both send SIGHUP. The second may come after the run has ended, so a
    stopped program keeps this handling to its end. A Cancelled raised inside gets the signal's exit code.
    """
    stopped = Stop()
    since = 0.0

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal since
        if stopped.number is None:
            stopped.number, since = number, time.monotonic()
            # In another thread, since the interrupted one may hold the engine's lock.
            threading.Thread(target=cancel, daemon=True).start()
        elif number == signal.SIGINT and time.monotonic() - since > AGAIN_S:
            raise StopSignal(number)

    with _handled(stop, ENDING, keep=lambda: stopped.number is not None):
        try:
            yield stopped
        except Cancelled as error:
            error.exit_code = stopped.exit_code
            raise


@contextmanager
def _handled(
    handler: Callable[[int, FrameType | None], None],
    numbers: tuple[int, ...],
    keep: Callable[[], bool] = lambda: False,
) -> Iterator[None]:
    """Install a handler for some signals, but not for an ignored SIGHUP, which nohup set.

    keep: asked at the end, whether the handler stays. One that was replaced meanwhile is not put back either.
    """
    before: dict[int, Any] = {}
    for number in numbers:
        if number != HANGUP or signal.getsignal(number) != signal.SIG_IGN:
            before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, handled in before.items():
            if not keep() and signal.getsignal(number) is handler:
                signal.signal(number, handled)
