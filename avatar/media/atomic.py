"""Files that are whole or not there, also after the power went off; and what a full disk is called."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from avatar.errors import AvatarError, NotPlaced

log = logging.getLogger(__name__)

DRAFT = ".live-avatar-part"  # ends the name of a file that is being written
_DISK_ERRORS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EIO,
    errno.ESTALE,
    errno.ENOTCONN,
    errno.EHOSTDOWN,
    errno.ETIMEDOUT,
)
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP)  # of file systems that cannot sync a folder


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk itself; Windows opens no folders."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace(path: Path, target: Path) -> None:
    """Put a finished file, or folder, in its place on the same disk, at once. Raises: OSError."""
    sync(path)
    os.replace(path, target)
    try:
        sync(target.parent)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
        log.debug("%s cannot be synced: %s", target.parent.name, error.strerror)


@contextmanager
def whole(target: Path) -> Iterator[Path]:
    """A path where a file, or a folder, is written; in the end it is put in target's place, at once.

    After an error target is what it was before. Raises: OSError.
    """
    draft = draft_of(target)
    try:
        yield draft
        replace(draft, target)
    finally:
        if draft.is_dir():
            shutil.rmtree(draft, ignore_errors=True)
        else:
            draft.unlink(missing_ok=True)


def write(path: Path, data: bytes) -> None:
    """Write a file whole, or leave what was there before. Raises: OSError."""
    with whole(path) as draft:
        draft.write_bytes(data)


def copy(path: Path, target: Path) -> None:
    """Copy a file whole, or leave what was there before. Raises: OSError."""
    with whole(target) as draft:
        shutil.copyfile(path, draft)


def move(path: Path, target: Path) -> None:
    """Put a finished file in its place, also on another disk, at once. Raises: OSError, with path whole."""
    try:
        replace(path, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        copy(path, target)
        path.unlink()


def place(path: Path, target: Path) -> None:
    """Move a finished video to where the user wants it. Raises: NotPlaced, which tells where it still is."""
    try:
        move(path, target)
    except OSError as error:
        if not path.exists():  # only the folder could not be synced any more
            path = target
        raise not_placed(error, path) from error


def draft_of(path: Path) -> Path:
    """Where a file, or a folder, is written before it is whole."""
    return path.with_name(f".{path.name}{DRAFT}")


def not_placed(error: OSError, *kept: Path) -> NotPlaced:
    """What a user reads when a finished video cannot be put in its place."""
    reason = error.strerror or type(error).__name__
    return NotPlaced(
        f"The video is made, but cannot be put in its place ({reason}).",
        "Make room or choose another output.",
        kept,
    )


def disk_error(error: BaseException) -> BaseException:
    """A failure to write, as an error for the user; anything else as it is."""
    return unwritten(error) if isinstance(error, OSError) and error.errno in _DISK_ERRORS else error


def unwritten(error: OSError) -> AvatarError:
    """What a user reads when a video, or a part of it, cannot be written."""
    reason = error.strerror or type(error).__name__
    failure = AvatarError(f"The video cannot be written ({reason}).", "Free disk space, then run it again.")
    failure.__cause__ = error
    return failure
