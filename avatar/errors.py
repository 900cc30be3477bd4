"""Errors shown to users: what is wrong, and what to do about it.

No message contains a folder or a stack trace, so any of these may be shown in a browser unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


class AvatarError(Exception):
    """Base of all errors shown to users.

    message: what is wrong, one sentence. remedy: what to do, one sentence, may be empty.
    exit_code: the command line's exit code.
    """

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)  # both in args, so that it survives pickling between processes
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()


class BadInput(AvatarError):
    """A file or a setting cannot be used; refused before anything is loaded."""

    exit_code = 2


class WeightsMissing(AvatarError):
    """A checkpoint is missing, incomplete, corrupt, or of another model."""

    exit_code = 3


class DoesNotFit(AvatarError):
    """The plan needs more than the machine has."""

    exit_code = 4


class WorkerLost(AvatarError):
    """The process that was generating died, hung, or ran out of memory."""

    exit_code = 5


class Cancelled(AvatarError):
    """The user stopped the run."""

    exit_code = 130


class NotPlaced(AvatarError):
    """A video is finished, but cannot be written to its destination.

    kept: paths of the complete files; not in the message, since a browser must not see folders.
    """

    def __init__(self, message: str, remedy: str = "", kept: Iterable[Path] = ()) -> None:
        super().__init__(message, remedy)
        self.kept = tuple(kept)
        self.args = (message, remedy, self.kept)  # constructor arguments, for unpickling
