"""Errors that a user reads: what is wrong, and what to do about it.

Nothing here carries a folder or a stack trace, so any of these may be shown in a browser as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


class AvatarError(Exception):
    """Base of every error meant for a user's eyes.

    message: what is wrong, one sentence. remedy: what to do, one sentence, may be empty.
    exit_code: what the command line exits with.
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
    """A checkpoint is absent, incomplete, corrupt, or not the model that it should be."""

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
    """A video is made, but where it should go it cannot be written.

    kept: where what was made lies, whole; not in the message, as a browser must not see folders.
    """

    def __init__(self, message: str, remedy: str = "", kept: Iterable[Path] = ()) -> None:
        super().__init__(message, remedy)
        self.kept = tuple(kept)
        self.args = (message, remedy, self.kept)  # what it is made from again after pickling
