"""A folder for what lives no longer than this process; those that ended processes left behind are removed."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType

log = logging.getLogger(__name__)

PREFIX = "live-avatar-"
KEPT_PREFIX = "kept-by-live-avatar-"  # of folders that stay: what could not be put where it should go


class Scratch:
    """A context manager: the folder is there within it, and a lock in the folder tells that it is in use."""

    def __init__(self, parent: Path | None = None) -> None:
        self.parent = parent or Path(tempfile.gettempdir())

    def __enter__(self) -> Path:
        self._sweep()
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=self.parent))
        self._lock = (self.folder / ".lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        return self.folder

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.close()
        shutil.rmtree(self.folder)

    def _sweep(self) -> None:
        for folder in self.parent.glob(f"{PREFIX}*"):
            try:
                ours = _is_folder(folder) and folder.stat().st_uid == os.getuid()
                if ours and not _is_held(folder / ".lock"):
                    log.info("removing %s, left behind", folder.name)
                    shutil.rmtree(folder)
            except FileNotFoundError:
                log.debug("%s has just been removed by another process", folder.name)


def keep(path: Path, name: str, parent: Path | None = None) -> Path:
    """Move a finished file to a folder that stays when scratch folders go; returns its new place.

    parent: of that folder, the system's temporary one as a rule: on one disk with scratch, where a move needs
    no room. Raises: OSError.
    """
    folder = Path(tempfile.mkdtemp(prefix=KEPT_PREFIX, dir=parent))
    return Path(shutil.move(path, folder / name))


def _is_folder(path: Path) -> bool:
    """Whether it is a folder itself: a link might lead to anybody's."""
    return path.is_dir() and not path.is_symlink()


def _is_held(lock: Path) -> bool:
    """Whether a living process holds the lock; a folder without one has just been made: held."""
    if lock.is_symlink() or not lock.is_file():
        return True
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
