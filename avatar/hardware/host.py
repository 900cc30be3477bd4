"""RAM and cores that this process may really use: a control group (container) may limit both.

Source: the kernel's cgroup-v1 and cgroup-v2 documentation.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")


@dataclass(frozen=True)
class Ram:
    """Bytes. available: what a new allocation could get without swapping."""

    total_bytes: int
    available_bytes: int

    @property
    def used_bytes(self) -> int:
        return self.total_bytes - self.available_bytes


def ram(cgroups: Path = CGROUPS, own_groups: Path = OWN_GROUPS) -> Ram:
    """The machine's RAM, within the tightest limit of this process's control groups."""
    memory = psutil.virtual_memory()
    total, available = memory.total, memory.available
    for folder, version in _groups("memory", cgroups, own_groups):
        names = ("memory.max", "memory.current") if version == 2 else _V1_MEMORY
        limit, used = (_number(folder / name) for name in names)
        if limit is None or used is None or limit >= memory.total:
            continue
        reclaimable = _stat(
            folder / "memory.stat", "inactive_file" if version == 2 else "total_inactive_file"
        )
        total = min(total, limit)
        available = min(available, max(limit - used + reclaimable, 0))
    return Ram(total, min(available, total))


def num_cores(cgroups: Path = CGROUPS, own_groups: Path = OWN_GROUPS) -> int:
    """CPU cores that this process may use, by its affinity and any CPU quota; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder, version in _groups("cpu", cgroups, own_groups):
        if version == 2:
            quota, period = _pair(folder / "cpu.max")
        else:
            quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        if quota and period and quota > 0:
            cores = min(cores, max(1, round(quota / period)))
    return cores


def held_bytes(pid: int | str) -> int:
    """Bytes that would be freed if a process ended, including pinned memory but not mapped files.

    0 when it is gone or the system does not report them.
    """
    lines = _text(Path(f"/proc/{pid}/status")).splitlines()
    sizes = dict(line.split(":", 1) for line in lines if line.startswith(("RssAnon", "RssShmem")))
    return sum(int(size.split()[0]) * 1024 for size in sizes.values())


_V1_MEMORY = ("memory.limit_in_bytes", "memory.usage_in_bytes")


def _groups(controller: str, cgroups: Path, own_groups: Path) -> Iterator[tuple[Path, int]]:
    """Folders of this process's groups for a controller, innermost first, with the cgroup version."""
    if not own_groups.is_file():
        return
    for line in own_groups.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, version = cgroups, 2
        elif controller in controllers.split(","):
            top, version = cgroups / controller, 1
        else:
            continue
        inner = Path(path.lstrip("/"))
        for part in (inner, *inner.parents):
            yield top / part, version


def _number(path: Path) -> int | None:
    """The integer in a file; None if the file is missing, unreadable, or says "max"."""
    text = _text(path).strip()
    return int(text) if text.lstrip("-").isdigit() else None


def _pair(path: Path) -> tuple[int | None, int | None]:
    words = _text(path).split()
    return (int(words[0]), int(words[1])) if len(words) == 2 and words[0].isdigit() else (None, None)


def _stat(path: Path, key: str) -> int:
    for line in _text(path).splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return int(value)
    return 0


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""  # the group has no such limit, or this process may not read it: none is known
