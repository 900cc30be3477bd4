"""Voices, and the protocol of speech engines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from avatar.errors import AvatarError


class VoiceUnavailable(AvatarError):
    """A voice cannot speak: something is not installed, cannot be fetched, or does not answer."""


@dataclass(frozen=True)
class Voice:
    """One voice that can be chosen.

    name: unique. language: BCP 47 tag. scripts: the scripts it reads, as named by scripts_in; empty for any.
    about: a description. fetch_mb: size of the download at first use, 0 for none. missing: what has to be
    installed before it can speak, "" for nothing.
    """

    name: str
    language: str
    scripts: tuple[str, ...]
    about: str
    fetch_mb: int = 0
    missing: str = ""

    def reads(self, scripts: Sequence[str]) -> bool:
        """Whether the voice reads all of these scripts."""
        return not self.scripts or set(scripts) <= set(self.scripts)


class SpeechEngine(Protocol):
    """A text-to-speech engine."""

    @property
    def hz(self) -> int:
        """Sample rate of its output."""

    def voices(self) -> list[Voice]:
        """The engine's voices; fast, because nothing is loaded or fetched."""

    def load(self, voice: str) -> None:
        """Load a voice, so that speaking starts without delay. Raises: AvatarError."""

    def synthesise(self, text: str, voice: str, speed: float = 1.0) -> Iterator[np.ndarray]:
        """Speak one sentence: yield chunks of float32 (n,) in −1..1 at hz. Raises: AvatarError.

        speed: 2 is twice as fast. A sentence with nothing to pronounce yields nothing.
        """
