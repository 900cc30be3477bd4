"""Measure device time without synchronising, memory peaks, and the machine's configuration."""

from __future__ import annotations

import platform
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch

from avatar.bench.gpu_peaks import nvml_peaks
from avatar.hardware.nvml import open_driver
from avatar.pipeline.device_budget import number_of
from avatar.pipeline.offload.pinned import pinned_bytes
from avatar.runtime.report import installed_versions


@dataclass
class Stopwatch:
    """Milliseconds of device work between two points, without waiting for the device."""

    device: torch.device
    marks: dict[str, list[tuple[Any, Any]]] = field(default_factory=dict)

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Time the work enqueued in this context."""
        start = self._now()
        yield
        self.marks.setdefault(name, []).append((start, self._now()))

    def milliseconds(self, name: str) -> list[float]:
        """All times measured under a name, in order."""
        if self.device.type != "cuda":
            return [(end - start) * 1000 for start, end in self.marks.get(name, [])]
        torch.cuda.synchronize(self.device)
        return [start.elapsed_time(end) for start, end in self.marks.get(name, [])]

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event


@dataclass
class MemoryPeaks:
    """Peak memory; None without a GPU. nvml_bytes: everything on the card, other programs' included.

    allocator_bytes: torch's tensors. reserved_bytes: memory that torch took from the driver for them.
    """

    nvml_bytes: int | None = None
    allocator_bytes: int | None = None
    reserved_bytes: int | None = None


@dataclass(frozen=True)
class MemoryHeld:
    """Bytes in use at one moment; GPU values are None without a GPU. pinned_bytes: part of host_bytes."""

    nvml_bytes: int | None
    allocator_bytes: int | None
    reserved_bytes: int | None
    pinned_bytes: int
    host_bytes: int

    @classmethod
    def now(cls, device: torch.device) -> MemoryHeld:
        """Read the current values, without waiting for the device."""
        pinned, host = pinned_bytes(), psutil.Process().memory_info().rss
        if device.type != "cuda":
            return cls(None, None, None, pinned, host)
        free, total = torch.cuda.mem_get_info(device)
        allocated, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
        return cls(total - free, allocated, reserved, pinned, host)


def host_peak_bytes() -> int:
    """Peak host memory of this process, pinned or not.

    From the kernel's high-water mark, which is approximate: a reading taken earlier may be slightly higher.
    """
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def take_no_more(device: torch.device, num_bytes: int) -> None:
    """Limit this process's tensors to num_bytes of a GPU's memory, as if the GPU had no more.

    CUDA's own context is not counted, so subtract it first.
    """
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(num_bytes / total, 1.0), device)


@contextmanager
def watched(device: torch.device) -> Iterator[MemoryPeaks]:
    """Context that measures the device's memory peaks, polling NVML."""
    peaks = MemoryPeaks()
    if device.type != "cuda":
        yield peaks
        return
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    index = number_of(device)
    with nvml_peaks() as cards:
        try:
            yield peaks
        finally:
            peaks.nvml_bytes = None if index is None else cards.get(index)
            peaks.allocator_bytes = torch.cuda.max_memory_allocated(device)
            peaks.reserved_bytes = torch.cuda.max_memory_reserved(device)


def machine(device: torch.device) -> dict[str, Any]:
    """Versions and names of hardware and software, to be stored with the figures."""
    facts: dict[str, Any] = {
        "device": "cpu",
        "platform": platform.platform(),
        "num_threads": torch.get_num_threads(),
        "versions": installed_versions(),
    }
    if device.type == "cuda":
        driver = open_driver()
        facts |= {
            "device": torch.cuda.get_device_name(device),
            "total_bytes": torch.cuda.get_device_properties(device).total_memory,
            "compute_capability": ".".join(map(str, torch.cuda.get_device_capability(device))),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "driver": driver.version,
        }
        driver.close()
    return facts
