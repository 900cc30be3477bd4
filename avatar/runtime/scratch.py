"""A folder for what lives no longer than this process; those that ended processes left behind are removed."""

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
KEPT_PREFIX = "kept-by-live-avatar-"  # of folders that stay: what could not be put where it should go


class Scratch:
    """A context manager: the folder is there within it, and a lock in the folder tells that it is in use."""

    def __init__(self, parent: Path | None = None) -> None:
        """parent: where to make it; None: the machine's temporary folder."""
        self._parent = parent

    def __enter__(self) -> Path:
        """Raises: BadInput where no folder can be made."""
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
            except OSError as error:  # whatever it is, it must not keep this process from starting
                log.warning("%s cannot be removed: %s", folder.name, error.strerror)


@contextmanager
def writing_in(*folders: Path) -> Iterator[None]:
    """While inside, is_written says so of these folders: others leave them alone if their owner has died."""
    with ExitStack() as stack:
        for folder in folders:
            stack.enter_context(locks.sharing(folder))
        yield


def is_written(folder: Path) -> bool:
    """Whether some process is inside writing_in for this folder."""
    return locks.is_shared(folder)


def _is_ours(folder: Path) -> bool:
    """Whether this user made it, and it is a folder: a link may lead anywhere.

    Windows gives each user a folder for temporary files of their own.
    """
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and (not hasattr(os, "getuid") or found.st_uid == os.getuid())


def _is_used(folder: Path) -> bool:
    """Whether its process lives, or an engine that outlived it still writes there."""
    within = [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()]
    return _is_held(folder / ".lock") or any(is_written(path) for path in [folder, *within])


def keep(path: Path, name: str, parent: Path | None = None) -> Path:
    """Move a finished file to a folder that stays when scratch folders go; returns its new place.

    parent: of that folder, the system's temporary one as a rule: on one disk with scratch, where a move needs
    no room. Raises: OSError.
    """
    folder = Path(tempfile.mkdtemp(prefix=KEPT_PREFIX, dir=parent))
    return Path(shutil.move(path, folder / name))


def _is_held(lock: Path) -> bool:
    """Whether a living process holds the lock; a folder without one has just been made: held."""
    if lock.is_symlink() or not lock.is_file():
        return True
    taken = locks.take(lock)
    if taken is None:
        return True
    taken.release()
    return False
