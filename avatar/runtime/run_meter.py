"""Measure a run's memory use, in the engine's process, while it runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from avatar.errors import AvatarError
from avatar.hardware.inventory import probe
from avatar.planning.gauges import Gauges
from avatar.planning.plan import Plan
from avatar.planning.planner import plan
from avatar.request import Request
from avatar.runtime.engine import FrameSource
from avatar.runtime.report import GpuUse, MemoryUse

log = logging.getLogger(__name__)

LOOK_S = 0.5


class RunMeter:
    """A thread that samples this process and its descendants every LOOK_S, and keeps the peaks."""

    def __init__(self, pinned: Callable[[], int | None] = lambda: None) -> None:
        """pinned: returns the page-locked bytes that the engine holds now."""
        self._gauges = Gauges(pinned=pinned)
        self._use = MemoryUse()
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="meter", daemon=True).start()

    def restart(self) -> None:
        """Forget the previous run's peaks; called when a run begins."""
        self._gauges.reset_peak()
        self.look()

    def look(self) -> MemoryUse:
        """Take a sample, and return the peaks since the run began."""
        reading = self._gauges.read()
        gpus = [
            GpuUse(gpu.index, gpu.name, gpu.peak_bytes, gpu.used_peak_bytes, gpu.total_bytes)
            for gpu in reading.gpus
            if gpu.peak_bytes != 0  # 0: this run does not use it
        ]
        host = reading.host
        self._use = MemoryUse(tuple(gpus), host.peak_bytes, host.pinned_bytes, host.pinned_peak_bytes)
        return self._use

    @property
    def use(self) -> MemoryUse:
        """The peaks as of the last sample."""
        return self._use

    def close(self) -> None:
        """Stop sampling, if the process outlives its runs."""
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(LOOK_S):
            self.look()


def planned(
    source: FrameSource, request: Request, weights: Path | None, cancelled: Callable[[], bool]
) -> Plan | None:
    """The plan of a run that begins now: the source's own if it makes one.

    None if it cannot be planned, or the run was cancelled.
    """
    plan_for = getattr(source, "plan_for", None)
    try:
        if plan_for is None:
            return plan(request.preset, probe(weights))
        found: Plan = plan_for(request, cancelled)
        return found
    except AvatarError as error:
        log.info("no plan: %s", error)
        return None
