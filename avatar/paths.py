"""Existence checks for any user's path: even if it is too long, has a NUL, or its folder is inaccessible."""

from __future__ import annotations

from pathlib import Path


def is_file(path: Path) -> bool:
    """Whether a path is a regular file; False for inaccessible paths and impossible names."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_dir(path: Path) -> bool:
    """Whether a path is a folder; like is_file."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def exists(path: Path) -> bool:
    """Whether a path exists; like is_file."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
