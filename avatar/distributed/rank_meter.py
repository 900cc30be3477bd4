"""What a rank has done so far: written by the thread that works, read by the one that sends heartbeats."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

NUM_STEPS = 16  # of which the longest is reported


class RankMeter:
    """Progress, time at work on the device, and bytes sent to other ranks; all only grow."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._reading = threading.Lock()
        self._spans: deque[tuple[Any, Any]] = deque()  # CUDA events around work that is enqueued
        self._busy_s = 0.0
        self._steps_s: deque[float] = deque(maxlen=NUM_STEPS)
        self._step_began: float | None = None
        self.ticks = 0
        self.sent_bytes = 0

    def tick(self) -> None:
        """Something went on: a step, a tensor loaded. A rank whose ticks stop is taken for hung."""
        self.ticks += 1

    def step(self) -> None:
        """As tick, at the end of a step of the run that goes on, which began with the one before it."""
        now = time.monotonic()
        if self._step_began is not None:
            self._steps_s.append(now - self._step_began)
        self._step_began = now
        self.tick()

    def pause(self) -> None:
        """No step goes on until the next one ends."""
        self._step_began = None

    @property
    def step_s(self) -> float | None:
        """The longest of the last steps, None before the first; those that compiled are soon forgotten."""
        steps_s = list(self._steps_s)
        return max(steps_s) if steps_s else None

    def sent(self, num_bytes: int) -> None:
        """So many bytes have been sent to other ranks."""
        self.sent_bytes += num_bytes

    @contextmanager
    def working(self) -> Iterator[None]:
        """Around the rank's own computing, not around its waiting; the device is not waited for."""
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
        """Seconds of the work that is done by now."""
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
        """The most that tensors took of the device so far; None without a GPU."""
        return torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else None

    def _on_device(self) -> AbstractContextManager[Any]:
        """For a thread of its own, which else would reach for the first GPU."""
        return torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext()

    def _mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event
