"""Write files atomically, so that even a power cut leaves no half-written file; errors for a full disk."""

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

DRAFT = ".live-avatar-part"  # suffix of a file that is still being written
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
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP)  # from file systems that cannot sync a folder


def sync(path: Path) -> None:
    """fsync a file or a folder's entries to disk; on Windows, which cannot open folders, skip folders."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace(path: Path, target: Path) -> None:
    """Move a finished file or folder to its place on the same disk, atomically. Raises: OSError."""
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
    """Yield a draft path to write a file or folder to; on success it replaces target atomically.

    On an error, target stays unchanged. Raises: OSError.
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
    """Write a file atomically; on failure the previous file stays. Raises: OSError."""
    with whole(path) as draft:
        draft.write_bytes(data)


def copy(path: Path, target: Path) -> None:
    """Copy a file atomically; on failure the previous target stays. Raises: OSError."""
    with whole(target) as draft:
        shutil.copyfile(path, draft)


def move(path: Path, target: Path) -> None:
    """Move a finished file to its place atomically, also across disks. Raises: OSError; path stays intact."""
    try:
        replace(path, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        copy(path, target)
        path.unlink()


def place(path: Path, target: Path) -> None:
    """Move a finished video to where the user wants it. Raises: NotPlaced, with the path it is still at."""
    try:
        move(path, target)
    except OSError as error:
        if not path.exists():  # it was moved; only syncing the folder failed
            path = target
        raise not_placed(error, path) from error


def draft_of(path: Path) -> Path:
    """The path that a file or folder is written to until it is complete."""
    return path.with_name(f".{path.name}{DRAFT}")


def not_placed(error: OSError, *kept: Path) -> NotPlaced:
    """The error for the user when a finished video cannot be moved to its place."""
    reason = error.strerror or type(error).__name__
    return NotPlaced(
        f"The video is made, but cannot be put in its place ({reason}).",
        "Make room or choose another output.",
        kept,
    )


def disk_error(error: BaseException) -> BaseException:
    """Turn a disk error into an error for the user; return any other error unchanged."""
    return unwritten(error) if isinstance(error, OSError) and error.errno in _DISK_ERRORS else error


def unwritten(error: OSError) -> AvatarError:
    """The error for the user when a video, or a part of it, cannot be written."""
    reason = error.strerror or type(error).__name__
    failure = AvatarError(f"The video cannot be written ({reason}).", "Free disk space, then run it again.")
    failure.__cause__ = error
    return failure
