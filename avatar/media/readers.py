"""How portraits and speech are read: here, in this process; runtime.bounded_reader does it in others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from avatar.media.limits import InputLimits
from avatar.media.portrait import Portrait, open_portrait
from avatar.media.speech import Speech, check_speech, write_speech


class Reader:
    """How pictures and sounds are read: here in this process, as the command line does."""

    def portrait(self, path: Path, *, name: str | None = None, limits: InputLimits | None = None) -> Portrait:
        """See open_portrait. Raises: BadInput."""
        return open_portrait(path, name=name, limits=limits)

    def speech(
        self, source: Path, target: Path, *, name: str | None = None, limits: InputLimits | None = None
    ) -> Speech:
        """See write_speech. Raises: BadInput."""
        return write_speech(source, target, name=name, limits=limits)

    def judge(self, speech: Path, *, name: str | None = None, limits: InputLimits | None = None) -> Speech:
        """What speech() would say of a file; see check_speech. Raises: BadInput."""
        return check_speech(speech, name=name, limits=limits)

    def ahead(self, portrait: Path | None, speech: Path | None, every_s: float) -> Iterator[None]:
        """Read ahead of their use; yields every every_s seconds until both are done, whatever comes of it."""
        yield from ()
