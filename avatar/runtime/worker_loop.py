"""The child's side of a link: receive runs, one at a time, each of which may be cancelled."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

from avatar.errors import AvatarError
from avatar.runtime.live_sound_queue import SoundInbox
from avatar.runtime.protocol import Cancel, Ended, LiveSound, PlanRequest, Prepare, Run

log = logging.getLogger(__name__)

HEARTBEAT_S = 1.0
MAX_UNSENT = 2  # messages waiting to be sent; frames are large, and heartbeats queue behind them
SETTLE_POLL_S = 0.01


def leave() -> None:
    """Exit immediately: the parent is gone, or no longer needs this process."""
    os._exit(0)


class Service:
    """Queues the link's messages for the working thread; any thread may send.

    Another thread serialises and sends, so that the working thread does not keep the GPU waiting.
    """

    def __init__(
        self,
        link: Connection,
        on_hangup: Callable[[], None] = leave,
        on_other: Callable[[Any], None] | None = None,
    ) -> None:
        """on_hangup: called once, when the other side is gone; its runs are already cancelled.

        on_other: called with every other message than Run, PlanRequest, Prepare, Cancel and LiveSound.
        """
        self._link, self._on_hangup, self._on_other = link, on_hangup, on_other
        self.sound = SoundInbox()  # of live sessions
        self._unsent: queue.Queue[Any] = queue.Queue(MAX_UNSENT)
        self._asked: queue.Queue[Run | PlanRequest | Prepare | None] = queue.Queue()
        self._cancelled: dict[int, threading.Event] = {}
        self._ending = threading.Lock()
        self.gone = False

    def start(self, heartbeat: Callable[[], Any]) -> None:
        """Start threads that listen, send, and send a heartbeat every second."""
        threading.Thread(target=self._listen, name="listen", daemon=True).start()
        threading.Thread(target=self._deliver, name="deliver", daemon=True).start()
        threading.Thread(target=self._beat, args=(heartbeat,), name="heartbeat", daemon=True).start()

    def send(self, message: Any) -> None:
        """Queue a message to the other side, if it still exists; the message must not be modified later."""
        if not self.gone:
            self._unsent.put(message)

    def settle(self) -> None:
        """Wait until everything has been sent, or the other side is gone."""
        while self._unsent.unfinished_tasks and not self.gone:
            time.sleep(SETTLE_POLL_S)

    def asked(self) -> Iterator[Run | PlanRequest | Prepare]:
        """Yield requests in order, Prepare only if none is after it; ends when the other side is gone."""
        while (asked := self._asked.get()) is not None:
            if not isinstance(asked, Prepare) or self._asked.empty():
                yield asked

    def stopped(self, run: Run) -> bool:
        """Whether a run was cancelled or has ended, or the other side is gone."""
        cancelled = self._cancelled.get(run.run)
        return self.gone or cancelled is None or cancelled.is_set()

    def end(self, run: Run, error: AvatarError | None) -> None:
        """Report the end of a run."""
        del self._cancelled[run.run]
        self.send(Ended(run.run, error))

    def _listen(self) -> None:
        try:
            while True:
                self._take(self._link.recv())
        except (EOFError, OSError):
            self._hang_up()

    def _deliver(self) -> None:
        while not self.gone or not self._unsent.empty():  # threads blocked on a full queue must be released
            try:
                message = self._unsent.get(timeout=HEARTBEAT_S)
            except queue.Empty:
                continue
            try:
                if not self.gone:
                    self._link.send(message)
            except OSError:
                self._hang_up()
            except BaseException:
                log.exception("a message cannot be packed")
                os._exit(1)  # its waiting peer sees this process end
            self._unsent.task_done()

    def _take(self, message: Any) -> None:
        if isinstance(message, Run):
            self._cancelled[message.run] = threading.Event()
            self._asked.put(message)
        elif isinstance(message, PlanRequest | Prepare):
            self._asked.put(message)
        elif isinstance(message, Cancel):
            cancelled = self._cancelled.get(message.run)
            if cancelled is not None:  # otherwise it has already ended
                cancelled.set()
        elif isinstance(message, LiveSound):
            self.sound.put(message)
        elif self._on_other is not None:
            self._on_other(message)

    def _beat(self, heartbeat: Callable[[], Any]) -> None:
        while not self.gone:
            self.send(heartbeat())
            time.sleep(HEARTBEAT_S)

    def _hang_up(self) -> None:
        with self._ending:
            first, self.gone = not self.gone, True
        if first:
            self._asked.put(None)
            self._on_hangup()
