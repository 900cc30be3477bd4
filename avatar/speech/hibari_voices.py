"""Voices that come with the requirements: hibari, English, far faster than real time on one CPU core.

hibari is a young library by one author, so only the reviewed version is used: its files' digest is checked
before any of its code runs.
"""

from __future__ import annotations

import hashlib
import importlib.util
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from avatar.media.onnx import report_to_nobody
from avatar.speech import voice_files
from avatar.speech.voices import Voice, VoiceUnavailable
from avatar.speech.writing_systems import LATIN

VERSION = "0.2.1"
# SHA-256 of the lines "path sha256\n" of all its files, sorted by path.
DIGEST = "69d258208e58548b9ff1c1da137f9a7fcb0039098af1cf09c864ebf0cc6fa4d0"
INSTALL = f"pip install --force-reinstall --no-deps hibari-tts=={VERSION}"
REPO = "maureesewilliams/hibari"
DEFAULT = "heart"
_SEED = 0  # of the model's noise: the same text always sounds the same

# Voices by name: language and description. The first is in the package.
_VOICES = {
    DEFAULT: ("en-US", "American woman"),
    "fenrir": ("en-US", "American man"),
    "kore": ("en-US", "American woman, second voice"),
    "emma": ("en-GB", "British woman"),
    "fable": ("en-GB", "British man"),
}


class EmbeddedVoices:
    """A SpeechEngine of the hibari voices. One thread at a time speaks."""

    hz = 24_000

    def __init__(self) -> None:
        self._speaking = threading.Lock()
        self._loaded: dict[str, Any] = {}

    def voices(self) -> list[Voice]:
        """See SpeechEngine."""
        if importlib.util.find_spec("hibari") is None:
            missing = f"Run: pip install hibari-tts=={VERSION}"
        else:
            missing = "" if checked() else f"Run: {INSTALL}"
        return [
            Voice(name, language, (LATIN,), about, 0 if self._is_here(name, missing) else 8, missing)
            for name, (language, about) in _VOICES.items()
        ]

    def load(self, voice: str) -> None:
        """See SpeechEngine."""
        with self._speaking:
            self._model(voice)

    def synthesise(self, text: str, voice: str, speed: float = 1.0) -> Iterator[np.ndarray]:
        """See SpeechEngine."""
        with self._speaking:
            model = self._model(voice)
            spoken = list(model.stream(text, speed=speed, seed=_SEED))
        yield from (chunk.astype(np.float32, copy=False) for chunk in spoken if chunk.size)

    def phonemes(self, text: str, british: bool) -> str:
        """Convert English to misaki's phonemes. Raises: VoiceUnavailable."""
        require()
        return str(_g2p(british)(text))

    def _model(self, voice: str) -> Any:
        if voice not in self._loaded:
            require()
            from hibari import Hibari

            self._loaded[voice] = Hibari(
                voice=voice, model=_model_file(voice), g2p=_g2p(_VOICES[voice][0] == "en-GB")
            )
        return self._loaded[voice]

    def _is_here(self, name: str, missing: str) -> bool:
        if missing or name == DEFAULT:
            return True
        return voice_files.here(REPO, _registry()[name][0])


def require() -> None:
    """Check the library; call this before any import of it.

    Raises: VoiceUnavailable when it is not installed, or is not the reviewed version.
    """
    report_to_nobody()
    if importlib.util.find_spec("hibari") is None:
        raise VoiceUnavailable(
            "The English voices are not installed.", f"Run: pip install hibari-tts=={VERSION}"
        )
    if not checked():
        raise VoiceUnavailable(
            f"The library of the English voices is not hibari-tts {VERSION} as it was published.",
            f"Run: {INSTALL}",
        )


@cache
def checked() -> bool:
    """Whether the installed library is, byte for byte, the reviewed version."""
    spec = importlib.util.find_spec("hibari")
    return spec is not None and spec.origin is not None and digest(Path(spec.origin).parent) == DIGEST


def digest(folder: Path) -> str:
    """Digest of all files of a package except bytecode."""
    whole = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            own = hashlib.sha256(path.read_bytes()).hexdigest()
            whole.update(f"{path.relative_to(folder).as_posix()} {own}\n".encode())
    return whole.hexdigest()


@cache
def _g2p(british: bool) -> Any:
    from hibari.g2p import G2P

    return G2P(british=british)


def _registry() -> dict[str, tuple[str, str]]:
    """Each voice's file on the hub and its SHA-256, from the library."""
    from hibari.voices import VOICES

    return {name: (f"voices/{one['file']}", one["sha256"]) for name, one in VOICES.items()}


def _model_file(voice: str) -> str | None:
    """A voice's model file; None for the voice in the package."""
    return None if voice == DEFAULT else str(voice_files.fetched(REPO, *_registry()[voice]))
