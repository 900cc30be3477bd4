"""Files that one process holds at a time, on every system; the system frees those of a process that dies."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout


def take(path: Path) -> FileLock | None:
    """The lock, held until its release(), or None while anybody else holds it. Raises: OSError."""
    lock = FileLock(path, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        return None
    return lock
