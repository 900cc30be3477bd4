"""The bundled portraits and speech that start with one press."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from avatar.media.speech_reader import SPEECH_SUFFIXES

ASSETS = Path(__file__).resolve().parents[3] / "assets"
PICTURES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True)
class Example:
    """A portrait and a speech that go together."""

    portrait: Path
    speech: Path

    @property
    def spoken(self) -> str:
        """The speech's language, in which its file's name ends: name-en.flac."""
        return _language(self.speech)

    @property
    def titles(self) -> tuple[str, str]:
        """Titles of the portrait and the speech, in English."""
        return _title(self.portrait), _title(self.speech)


class Examples:
    """The examples in the assets folder."""

    def __init__(self, folder: Path = ASSETS) -> None:
        self.portraits = _files(folder / "portraits", PICTURES)
        self.speeches = sorted(
            _files(folder / "speech", SPEECH_SUFFIXES), key=lambda path: _language(path) != "en"
        )

    @cached_property
    def pairs(self) -> list[Example]:
        """Every portrait once, with the speeches in turn."""
        if not self.speeches:
            return []
        return [
            Example(portrait, self.speeches[number % len(self.speeches)])
            for number, portrait in enumerate(self.portraits)
        ]

    def bundled(self, portrait: Path) -> Path | None:
        """The bundled portrait with the same bytes, which may have a sidecar of points."""
        alike = [ours for ours in self.portraits if _size(ours) == _size(portrait)]
        digest = _digest(portrait) if alike else ""
        return next((ours for ours in alike if _digest(ours) == digest), None)


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.suffix.lower() in suffixes)


def _size(path: Path) -> int | None:
    """Bytes of a regular file, None for anything else."""
    return path.stat().st_size if path.is_file() else None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _language(path: Path) -> str:
    return path.stem.rpartition("-")[2]


def _title(path: Path) -> str:
    """Made from the file's name."""
    return path.stem.replace("_", " ").replace("-", " ").capitalize()
