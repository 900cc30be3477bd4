"""A temporary folder for this process; those left behind by ended processes are removed."""

from __future__ import annotations

import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

from avatar import locks
from avatar.errors import BadInput

log = logging.getLogger(__name__)

PREFIX = "live-avatar-"
KEPT_PREFIX = "kept-by-live-avatar-"  # of folders that stay, for files that could not be placed


class Scratch:
    """A context manager that creates the folder; a lock in the folder marks it as in use."""

    def __init__(self, parent: Path | None = None) -> None:
        """parent: where to create it; None: the system's temporary folder."""
        self._parent = parent

    def __enter__(self) -> Path:
        """Raises: BadInput when no folder can be created."""
        try:
            parent = self._parent or Path(tempfile.gettempdir())
            self._sweep(parent)
            self.folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
            self._lock = locks.take(self.folder / ".lock")
        except OSError as error:
            raise BadInput(
                f"No temporary folder can be made ({error.strerror}).",
                "Free some disk space, or name a folder that can be written with $TMPDIR.",
            ) from error
        return self.folder

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.release()
        shutil.rmtree(self.folder)

    def _sweep(self, parent: Path) -> None:
        for folder in parent.glob(f"{PREFIX}*"):
            try:
                if _is_ours(folder) and not _is_used(folder):
                    log.info("removing %s, left behind", folder.name)
                    shutil.rmtree(folder)
            except FileNotFoundError:
                log.debug("%s has just been removed by another process", folder.name)
            except OSError as error:  # must not prevent this process from starting
                log.warning("%s cannot be removed: %s", folder.name, error.strerror)


@contextmanager
def writing_in(*folders: Path) -> Iterator[None]:
    """While inside, is_written is true for these folders: they are not swept even if their owner has died."""
    with ExitStack() as stack:
        for folder in folders:
            stack.enter_context(locks.sharing(folder))
        yield


def is_written(folder: Path) -> bool:
    """Whether any process is inside writing_in for this folder."""
    return locks.is_shared(folder)


def _is_ours(folder: Path) -> bool:
    """Whether this user created it, and it is a folder, not a link, which could point anywhere.

    On Windows each user has a temporary folder of their own.
    """
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and (not hasattr(os, "getuid") or found.st_uid == os.getuid())


def _is_used(folder: Path) -> bool:
    """Whether its process is alive, or an engine that outlived that process still writes there."""
    within = [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()]
    return _is_held(folder / ".lock") or any(is_written(path) for path in [folder, *within])


def keep(path: Path, name: str, parent: Path | None = None) -> Path:
    """Move a finished file to a folder that outlives scratch folders; returns its new path.

    parent: of that folder, by default the system's temporary one: it is on the same disk as scratch, so the
    move needs no space. Raises: OSError.
    """
    folder = Path(tempfile.mkdtemp(prefix=KEPT_PREFIX, dir=parent))
    return Path(shutil.move(path, folder / name))


def _is_held(lock: Path) -> bool:
    """Whether a live process holds the lock; a folder without one was just created and counts as held."""
    if lock.is_symlink() or not lock.is_file():
        return True
    taken = locks.take(lock)
    if taken is None:
        return True
    taken.release()
    return False
