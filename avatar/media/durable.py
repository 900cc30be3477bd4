"""Files that are whole or not there, also after the power went off; and what a full disk is called."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from avatar.errors import AvatarError

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)


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
    """Put a finished file in its place on the same disk, at once. Raises: OSError."""
    sync(path)
    os.replace(path, target)
    sync(target.parent)


def write(path: Path, data: bytes) -> None:
    """Write a file whole, or leave what was there before. Raises: OSError."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(data)
        replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def disk_error(error: BaseException) -> BaseException:
    """A failure to write, as an error for the user; anything else as it is."""
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        told = AvatarError(
            f"The video cannot be written ({error.strerror}).", "Free disk space, then run it again."
        )
        told.__cause__ = error
        return told
    return error
