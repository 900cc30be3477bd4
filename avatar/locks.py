"""Locks on files and folders, on every system; the system releases those of a process that dies."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

try:
    import fcntl
except ImportError:  # Windows, which cannot lock folders
    fcntl = None  # type: ignore[assignment]

__all__ = ["FileLock", "is_shared", "sharing", "take", "waiting_for"]

log = logging.getLogger(__name__)


def take(path: Path) -> FileLock | None:
    """Take the lock, until its release(); None if another holder has it. Raises: OSError."""
    lock = FileLock(path, timeout=0, mode=0o600, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        return None
    return lock


def waiting_for(path: Path) -> AbstractContextManager[object]:
    """Wait for the lock, and hold it while inside. Raises: OSError."""
    return FileLock(path, mode=0o600, thread_local=False)


@contextmanager
def sharing(folder: Path) -> Iterator[None]:
    """While inside, is_shared is true for this folder, where folders can be locked."""
    if fcntl is None:
        yield
        return
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:  # some network file systems cannot lock folders
            log.debug("a folder cannot be locked: %s", error.strerror)
        yield
    finally:
        os.close(opened)


def is_shared(folder: Path) -> bool:
    """Whether some process is inside sharing for this folder; False where folders cannot be locked."""
    if fcntl is None:
        return False
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        log.debug("a folder cannot be locked: %s", error.strerror)
    finally:
        os.close(opened)
    return False
