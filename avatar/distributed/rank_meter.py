"""A rank's counters: written by the working thread, read by the thread that sends heartbeats."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

NUM_STEPS = 16  # the longest of the last so many steps is reported


class RankMeter:
    """Counts progress, device time, and bytes sent to other ranks; these only grow."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._reading = threading.Lock()
        self._spans: deque[tuple[Any, Any]] = deque()  # pairs of CUDA events around enqueued work
        self._busy_s = 0.0
        self._steps_s: deque[float] = deque(maxlen=NUM_STEPS)
        self._step_began: float | None = None
        self.ticks = 0
        self.sent_bytes = 0

    def tick(self) -> None:
        """Count progress: a step, or a loaded tensor. A rank whose ticks stop is considered hung."""
        self.ticks += 1

    def step(self) -> None:
        """Tick at the end of a step of the current run; the step began at the previous call."""
        now = time.monotonic()
        if self._step_began is not None:
            self._steps_s.append(now - self._step_began)
        self._step_began = now
        self.tick()

    def pause(self) -> None:
        """Do not count the time until the next step() as a step."""
        self._step_began = None

    @property
    def step_s(self) -> float | None:
        """The longest of the last NUM_STEPS steps, so steps that compiled soon drop out; None at first."""
        steps_s = list(self._steps_s)
        return max(steps_s) if steps_s else None

    def sent(self, num_bytes: int) -> None:
        """Count bytes sent to other ranks."""
        self.sent_bytes += num_bytes

    @contextmanager
    def working(self) -> Iterator[None]:
        """Context around the rank's own computation, not its waiting; does not wait for the device."""
        if self._device.type != "cuda":
            start = time.monotonic()
            yield
            with self._reading:  # rank 0 works in two threads
                self._worked(time.monotonic() - start)
            return
        start_event = self._mark()
        yield
        self._spans.append((start_event, self._mark()))

    @property
    def busy_s(self) -> float:
        """Seconds of completed work."""
        with self._reading, self._on_device():
            while self._spans and self._spans[0][1].query():
                start, end = self._spans.popleft()
                self._worked(start.elapsed_time(end) / 1000)
            return self._busy_s

    def _worked(self, seconds: float) -> None:
        self._busy_s += seconds
        self._steps_s.append(seconds)

    @property
    def peak_bytes(self) -> int | None:
        """Peak device memory allocated to tensors so far; None without a GPU."""
        return torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else None

    def _on_device(self) -> AbstractContextManager[Any]:
        """Select the rank's device: the heartbeat thread would otherwise use the first GPU."""
        return torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext()

    def _mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event
