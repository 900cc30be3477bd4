"""The child's side of a link: runs are asked for, one at a time, and each may be cancelled."""

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
from avatar.runtime.protocol import Ask, Cancel, Ended, LiveSound, Run

log = logging.getLogger(__name__)

HEARTBEAT_S = 1.0
MAX_UNSENT = 2  # messages that wait to be sent; frames are large, and heartbeats come behind them
SETTLE_POLL_S = 0.01


def leave() -> None:
    """The parent is gone, or has no more use for this process."""
    os._exit(0)


class Service:
    """What comes over the link, for the thread that works; any thread may send.

    Another thread packs and sends, so that who works goes on: a GPU would wait for it.
    """

    def __init__(
        self,
        link: Connection,
        on_hangup: Callable[[], None] = leave,
        on_other: Callable[[Any], None] | None = None,
    ) -> None:
        """on_hangup: called once, when the other side is gone; its runs are cancelled by then.

        on_other: called with every message but Run, Cancel and LiveSound.
        """
        self._link, self._on_hangup, self._on_other = link, on_hangup, on_other
        self.sound = SoundInbox()  # of live sessions
        self._unsent: queue.Queue[Any] = queue.Queue(MAX_UNSENT)
        self._asked: queue.Queue[Run | Ask | None] = queue.Queue()
        self._cancelled: dict[int, threading.Event] = {}
        self._ending = threading.Lock()
        self.gone = False

    def start(self, heartbeat: Callable[[], Any]) -> None:
        """Listen, send, and have a heartbeat sent every second, each in a thread of its own."""
        threading.Thread(target=self._listen, name="listen", daemon=True).start()
        threading.Thread(target=self._deliver, name="deliver", daemon=True).start()
        threading.Thread(target=self._beat, args=(heartbeat,), name="heartbeat", daemon=True).start()

    def send(self, message: Any) -> None:
        """To the other side, if it is still there, after all that was sent before; it must not change."""
        if not self.gone:
            self._unsent.put(message)

    def settle(self) -> None:
        """Wait until everything has been sent, or nobody is there to take it."""
        while self._unsent.unfinished_tasks and not self.gone:
            time.sleep(SETTLE_POLL_S)

    def asked(self) -> Iterator[Run | Ask]:
        """All that is asked for, in turn; ends when the other side is gone."""
        while (asked := self._asked.get()) is not None:
            yield asked

    def runs(self) -> Iterator[Run]:
        """As asked(), where nothing but runs is asked for."""
        return (asked for asked in self.asked() if isinstance(asked, Run))

    def stopped(self, run: Run) -> bool:
        """Whether nobody wants this run any more."""
        return self.gone or self._cancelled[run.run].is_set()

    def end(self, run: Run, error: AvatarError | None) -> None:
        """The run is over."""
        del self._cancelled[run.run]
        self.send(Ended(run.run, error))

    def _listen(self) -> None:
        try:
            while True:
                self._take(self._link.recv())
        except (EOFError, OSError):
            self._hang_up()

    def _deliver(self) -> None:
        while not self.gone or not self._unsent.empty():  # who waits for room in the queue must get it
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
                os._exit(1)  # whoever waits for it sees this process end
            self._unsent.task_done()

    def _take(self, message: Any) -> None:
        if isinstance(message, Run):
            self._cancelled[message.run] = threading.Event()
            self._asked.put(message)
        elif isinstance(message, Ask):
            self._asked.put(message)
        elif isinstance(message, Cancel):
            cancelled = self._cancelled.get(message.run)
            if cancelled is not None:  # else it has ended meanwhile
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
