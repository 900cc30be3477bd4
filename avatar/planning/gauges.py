"""Memory and load right now, per GPU (by NVML) and for the host. Cheap enough to read every second."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import psutil

from avatar.hardware import host
from avatar.hardware.inventory import HIDDEN_BYTES, own_processes
from avatar.hardware.nvml import Card, Driver, open_driver
from avatar.planning.plan import Plan

logger = logging.getLogger(__name__)

FRESH_S = 0.4  # several pages ask at once; a reading younger than this serves them all
REOPEN_S = 10.0  # how often to look again for a driver or a GPU where there is none


@dataclass(frozen=True)
class GpuReading:
    """One GPU now; None where NVML reports nothing (shown as "–").

    ours_bytes, others_bytes: in use by this program's processes, and by all others.
    peak_bytes: the highest ours_bytes since the last reset. planned_bytes: the plan's peak, if a plan is set.
    used_peak_bytes: the highest used_bytes since then, for when ours and others cannot be distinguished.
    """

    index: int
    name: str | None
    used_bytes: int | None
    ours_bytes: int | None
    others_bytes: int | None
    planned_bytes: int | None
    peak_bytes: int | None
    total_bytes: int | None
    utilization_percent: int | None
    temperature_c: int | None
    used_peak_bytes: int | None = None


@dataclass(frozen=True)
class HostReading:
    """RAM within any container's limit; ours_bytes: resident memory of this program's processes.

    pinned_bytes: page-locked by the engine, for copies to and from a GPU; None if it does not report them.
    Peaks are since the last reset.
    """

    ram_used_bytes: int
    ram_total_bytes: int
    ours_bytes: int
    planned_bytes: int | None
    cpu_percent: float
    peak_bytes: int | None = None
    pinned_bytes: int | None = None
    pinned_peak_bytes: int | None = None


@dataclass(frozen=True)
class Reading:
    """All gauges at one moment. no_gpu_reason: why gpus is empty."""

    gpus: tuple[GpuReading, ...]
    host: HostReading
    no_gpu_reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


class Gauges:
    """Reads the machine; any thread may ask. NVML stays open until close()."""

    def __init__(
        self, pids: Iterable[int] | None = None, pinned: Callable[[], int | None] = lambda: None
    ) -> None:
        """pids: processes that count as ours, with all their descendants; None: this process.

        pinned: returns the page-locked bytes that they hold, which no driver reports.
        """
        self.pinned = pinned
        self._lock = threading.Lock()
        self._roots = None if pids is None else set(pids)
        self._driver: Driver | None = None
        self._opened_s = 0.0
        self._plan: Plan | None = None
        self._peaks: dict[str, int] = {}
        self._reported: set[str] = set()
        self._cpu_times = psutil.cpu_times()
        self._cpu_percent = 0.0
        self._last: tuple[float, Reading] | None = None

    def set_plan(self, plan: Plan | None) -> None:
        """Show this plan's peaks beside the measured ones."""
        with self._lock:
            self._plan = plan
            self._last = None

    def reset_peak(self) -> None:
        """Forget the peaks; call this when a run starts."""
        with self._lock:
            self._peaks.clear()
            self._last = None

    def read(self) -> Reading:
        """All gauges now, or the last reading if it is younger than FRESH_S. NVML errors are never raised."""
        with self._lock:
            now = time.monotonic()
            if self._last is None or now - self._last[0] > FRESH_S:
                self._last = (now, self._read())
            return self._last[1]

    def close(self) -> None:
        """Close NVML; a later read() opens it again."""
        with self._lock:
            if self._driver is not None:
                self._driver.close()
                self._driver = None

    def _read(self) -> Reading:
        driver = self._opened_driver()
        pids = own_processes(self._roots)
        gpus = tuple(self._read_gpu(card, pids) for card in driver.cards)
        return Reading(gpus, self._read_host(pids), driver.reason)

    def _opened_driver(self) -> Driver:
        """The driver, opened once; if it had no GPU, reopened every REOPEN_S."""
        now = time.monotonic()
        if self._driver is not None and not self._driver.cards and now - self._opened_s > REOPEN_S:
            self._driver.close()
            self._driver = None
        if self._driver is None:
            self._driver, self._opened_s = open_driver(), now
        return self._driver

    def _read_gpu(self, card: Card, pids: set[int]) -> GpuReading:
        card.errors.clear()
        memory = card.memory()
        used = memory.used_bytes if memory else None
        ours = _ours(card.processes(), pids, used)
        reading = GpuReading(
            index=card.index,
            name=card.name(),
            used_bytes=used,
            ours_bytes=ours,
            others_bytes=None if ours is None or used is None else max(used - ours, 0),
            planned_bytes=self._plan.peak_bytes(card.index) if self._plan else None,
            peak_bytes=self._peak(f"GPU {card.index}", ours),
            total_bytes=memory.total_bytes if memory else None,
            utilization_percent=card.utilization_percent(),
            temperature_c=card.temperature_c(),
            used_peak_bytes=self._peak(f"card {card.index}", used),
        )
        self._tell_once(card)
        return reading

    def _read_host(self, pids: set[int]) -> HostReading:
        ram, ours, pinned = host.ram(), sum(map(_resident_bytes, pids)), self.pinned()
        return HostReading(
            ram_used_bytes=ram.used_bytes,
            ram_total_bytes=ram.total_bytes,
            ours_bytes=ours,
            planned_bytes=self._plan.host.peak_bytes if self._plan else None,
            cpu_percent=self._read_cpu(),
            peak_bytes=self._peak("host", ours),
            pinned_bytes=pinned,
            pinned_peak_bytes=self._peak("pinned", pinned),
        )

    def _peak(self, of: str, now: int | None) -> int | None:
        """The highest value since the last reset; None while there was none."""
        if now is not None:
            self._peaks[of] = max(self._peaks.get(of, 0), now)
        return self._peaks.get(of)

    def _read_cpu(self) -> float:
        """Busy percentage of all cores since the last reading (psutil's own keeps one count per thread)."""
        before, self._cpu_times = self._cpu_times, psutil.cpu_times()
        spent = [max(now - then, 0.0) for now, then in zip(self._cpu_times, before)]
        guests = sum(getattr(self._cpu_times, name, 0) - getattr(before, name, 0) for name in _GUESTS)
        total = sum(spent) - guests  # the kernel counts guests within user and nice, too
        idle = sum(spent[before._fields.index(name)] for name in ("idle", "iowait") if name in before._fields)
        if total > 0:
            self._cpu_percent = round(100 * min(max(1 - idle / total, 0.0), 1.0), 1)
        return self._cpu_percent

    def _tell_once(self, card: Card) -> None:
        """Log each query that NVML refused, once."""
        for error in card.errors:
            line = f"GPU {card.index}: NVML gives no {error}"
            if line not in self._reported:
                self._reported.add(line)
                logger.warning(line)


_GUESTS = ("guest", "guest_nice")


def _ours(processes: dict[int, int] | None, pids: set[int], used: int | None) -> int | None:
    """Bytes held by our processes; None when the driver does not report bytes per process.

    In a container it may list no processes, or process ids of another namespace: some may then be ours.
    """
    if processes is None or (not processes and used is not None and used > HIDDEN_BYTES):
        return None
    ours = sum(size for pid, size in processes.items() if pid in pids)
    return ours if ours or all(map(psutil.pid_exists, processes)) else None


def _resident_bytes(pid: int) -> int:
    try:
        return psutil.Process(pid).memory_info().rss
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0  # it has ended since it was listed
