"""A folder for what lives no longer than this process; those that ended processes left behind are removed."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType

from avatar.locks import take

log = logging.getLogger(__name__)

PREFIX = "live-avatar-"


class Scratch:
    """A context manager: the folder is there within it, and a lock in the folder tells that it is in use."""

    def __init__(self, parent: Path | None = None) -> None:
        self.parent = parent or Path(tempfile.gettempdir())

    def __enter__(self) -> Path:
        self._sweep()
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=self.parent))
        self._lock = take(self.folder / ".lock")
        return self.folder

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.release()
        shutil.rmtree(self.folder)

    def _sweep(self) -> None:
        for folder in self.parent.glob(f"{PREFIX}*"):
            try:
                if folder.is_dir() and _is_ours(folder) and not _is_held(folder / ".lock"):
                    log.info("removing %s, left behind", folder.name)
                    shutil.rmtree(folder)
            except FileNotFoundError:
                log.debug("%s has just been removed by another process", folder.name)


def _is_held(lock: Path) -> bool:
    """Whether a living process holds the lock; a folder without one has just been made: held."""
    if not lock.exists():
        return True
    taken = take(lock)
    if taken is None:
        return True
    taken.release()
    return False


def _is_ours(folder: Path) -> bool:
    """Whether this user made it; Windows gives each user a folder for temporary files of their own."""
    return not hasattr(os, "getuid") or folder.stat().st_uid == os.getuid()
