"""Report a rank's items once its device has completed them, and limit how far the host runs ahead."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

import torch
from torch import Tensor

from avatar.distributed.p2p import Done
from avatar.pipeline.device import downloading


class Completions:
    """Sends answers once the device has completed the work, and keeps the host at most one item ahead of it.

    fail: called at once with the error that prevented an answer, as no later item may come to raise it.
    """

    def __init__(
        self, device: torch.device, answer: Callable[[Done], None], fail: Callable[[BaseException], object]
    ) -> None:
        self._on_gpu, self._device = device.type == "cuda", device
        self._answer, self._fail = answer, fail
        self._marks: queue.Queue[tuple[torch.cuda.Event, Done | None]] = queue.Queue()
        self._ahead = threading.BoundedSemaphore(2)
        self._fault: BaseException | None = None
        if self._on_gpu:
            threading.Thread(target=self._send_when_done, daemon=True).start()

    def wait(self) -> None:
        """Call before an item: waits until at most one earlier item is unfinished."""
        if self._on_gpu:
            self._ahead.acquire()

    def mark(self, done: Done | None) -> None:
        """Call after an item has been enqueued. done: the answer to send, if any."""
        if self._fault is not None:
            raise self._fault
        if self._on_gpu:
            event = torch.cuda.Event(blocking=True)  # the waiting thread sleeps
            event.record(torch.cuda.current_stream(self._device))
            self._marks.put((event, done))
        elif done is not None:
            self._answer(done)

    def settle(self) -> None:
        """Wait until every answer has been sent. Raises: the error that prevented one."""
        self._marks.join()
        if self._fault is not None:
            raise self._fault

    def download(self, values: Tensor) -> Tensor:
        """Copy to the host; complete when the item's answer is sent."""
        return downloading(values) if self._on_gpu else values.clone()

    def _send_when_done(self) -> None:
        torch.cuda.set_device(self._device)  # a new thread would otherwise use the first GPU
        while True:
            event, done = self._marks.get()
            try:
                event.synchronize()
                if done is not None:
                    self._answer(done)
            except BaseException as error:  # raised in the working thread at its next item, if any
                if self._fault is None:
                    self._fault = error
                    self._fail(error)
            self._ahead.release()
            self._marks.task_done()
