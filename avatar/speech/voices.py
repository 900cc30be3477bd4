"""What a voice is, and what every engine that speaks has in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from avatar.errors import AvatarError


class VoiceUnavailable(AvatarError):
    """A voice cannot speak now: something is not installed, cannot be fetched, or does not answer."""


@dataclass(frozen=True)
class Voice:
    """One voice that can be chosen.

    name: by which it is chosen. language: its BCP 47 tag. scripts: which it reads, as scripts_in names
    them; empty: whatever it is given. about: who it is, in words. fetch_mb: what its first use downloads, 0
    when nothing is missing. missing: what has to be installed before it can speak, "" when nothing has.
    """

    name: str
    language: str
    scripts: tuple[str, ...]
    about: str
    fetch_mb: int = 0
    missing: str = ""

    def reads(self, scripts: Sequence[str]) -> bool:
        """Whether it knows all of these scripts."""
        return not self.scripts or set(scripts) <= set(self.scripts)


class SpeechEngine(Protocol):
    """What speaks."""

    @property
    def hz(self) -> int:
        """Samples a second of all that it says."""

    def voices(self) -> list[Voice]:
        """The voices that it has, quickly: nothing is loaded or fetched."""

    def load(self, voice: str) -> None:
        """Have a voice ready, so that speaking begins at once. Raises: AvatarError."""

    def synthesise(self, text: str, voice: str, speed: float = 1.0) -> Iterator[np.ndarray]:
        """Speak one sentence: chunks of float32 (n,) in −1..1 at hz. Raises: AvatarError.

        speed: 2 is twice as fast. Nothing comes of a sentence in which nothing can be pronounced.
        """
