"""Is it there? For any path that a user may give: too long, with a zero in it, in a folder that is closed."""

from __future__ import annotations

from pathlib import Path


def is_file(path: Path) -> bool:
    """Whether a regular file is there; what may not be looked at, or has no possible name, is not."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_dir(path: Path) -> bool:
    """Whether a folder is there; as is_file."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def exists(path: Path) -> bool:
    """Whether anything is there; as is_file."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
