"""Speak a text into a sound file, sentence by sentence, with the time of each sentence."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import wave
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from avatar.errors import BadInput
from avatar.media.files import check_file, display_name, minutes, quoted
from avatar.media.limits import InputLimits
from avatar.media.turns import Turn
from avatar.request import Caption
from avatar.settings import Speaking
from avatar.speech.catalogue import Catalogue
from avatar.speech.sentences import TextSentence, sentences
from avatar.speech.voices import SpeechEngine, Voice
from avatar.speech.writing_systems import is_dense

log = logging.getLogger(__name__)

_FASTEST_CHARS_PER_S = 40.0  # faster than any voice: a longer text is refused at once
_SLOWEST_CHARS_PER_S, _SLOWEST_DENSE_CHARS_PER_S = 6.0, 1.5  # about a third of what voices say at speed 1
_LEAD_S, _TAIL_S, _PARAGRAPH_S = 0.1, 0.35, 0.4  # silence before, after a sentence; added per paragraph
_SILENCE = 0.01  # below this share of the loudest sample
_MOST_BYTES = 8 * 2**20  # of a text file: about a day of speech


@dataclass(frozen=True)
class Script:
    """A text, and the voice and speed to speak it with."""

    text: str
    speaking: Speaking = field(default_factory=Speaking)

    @property
    def digest(self) -> str:
        """SHA-256 of the text, voice and speed."""
        said = [self.text, self.speaking.voice, self.speaking.speed]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()

    @property
    def title(self) -> str:
        """The text's beginning, as its name in messages and the gallery."""
        return quoted(self.text)


@dataclass(frozen=True)
class SpokenSentence:
    """One spoken sentence. samples: float32 (n,) in −1..1. start_s: where it begins in the sound file."""

    text: str
    samples: np.ndarray
    hz: int
    start_s: float

    @property
    def pcm(self) -> np.ndarray:
        """The samples as int16 (n,)."""
        return np.rint(self.samples * np.float32(32767)).clip(-32768, 32767).astype("<i2")

    @property
    def caption(self) -> Caption:
        lead_s = min(_LEAD_S, len(self.samples) / self.hz)
        return Caption(self.start_s + lead_s / 2, self.start_s + len(self.samples) / self.hz, self.text)


class Narrator:
    """Speaks a script that has been checked. Made by Narrator.of."""

    def __init__(self, engine: SpeechEngine, voice: Voice, script: Script, parts: list[TextSentence]) -> None:
        self.engine, self.voice, self.script, self.parts = engine, voice, script, parts

    @classmethod
    def of(cls, script: Script, catalogue: Catalogue, limits: InputLimits | None = None) -> Narrator:
        """Check a script, before anything loads.

        Raises: BadInput for an empty or overlong text, or a voice that does not exist or cannot read it.
        """
        limits = limits or InputLimits()
        if len(script.text) > limits.max_speech_s * _FASTEST_CHARS_PER_S:
            raise too_long(limits)
        engine, voice = catalogue.check(script.text, script.speaking.voice)
        return cls(engine, voice, script, sentences(script.text))

    @property
    def most_s(self) -> float:
        """A length that the speech will certainly stay below, in seconds."""
        per_s = _SLOWEST_DENSE_CHARS_PER_S if is_dense(self.script.text) else _SLOWEST_CHARS_PER_S
        pauses_s = len(self.parts) * (_LEAD_S + _TAIL_S + _PARAGRAPH_S)
        return sum(len(part.text) for part in self.parts) / per_s / self.script.speaking.speed + pauses_s

    def sentences(self) -> Iterator[SpokenSentence]:
        """Yield the sentences, each synthesised on demand. Raises: AvatarError."""
        start_s, hz = 0.0, self.engine.hz
        for part in self.parts:
            chunks = list(self.engine.synthesise(part.text, self.voice.name, self.script.speaking.speed))
            if not chunks:
                continue
            samples = trimmed(np.concatenate(chunks), hz)
            if part.ends_paragraph and part is not self.parts[-1]:
                samples = np.concatenate([samples, np.zeros(round(_PARAGRAPH_S * hz), np.float32)])
            yield SpokenSentence(part.text, samples, hz, start_s)
            start_s += len(samples) / hz

    def write(self, target: Path, limits: InputLimits | None = None) -> Iterator[SpokenSentence]:
        """Speak into a 16-bit WAV; yield each sentence once it is in the file.

        The file is deleted unless the text is spoken to its end. Raises: AvatarError.
        """
        limits = limits or InputLimits()
        with ExitStack() as undo:
            undo.callback(target.unlink, missing_ok=True)
            total = 0
            with wave.open(str(target), "wb") as out:
                out.setparams((1, 2, self.engine.hz, 0, "NONE", ""))
                for said in self.sentences():
                    total += len(said.samples)
                    if total > limits.max_speech_s * said.hz:
                        raise too_long(limits)
                    out.writeframesraw(said.pcm.tobytes())
                    yield said
            if not total:
                raise BadInput(
                    f"The voice {self.voice.name} cannot pronounce any of the text.",
                    "Write it in words, or choose another voice.",
                )
            undo.pop_all()


def too_long(limits: InputLimits) -> BadInput:
    """The error for a text whose speech would exceed the limit."""
    remedy = f"Shorten it; or {limits.longer}." if limits.longer else "Shorten it."
    return BadInput(f"The text is too long: spoken, it may last {minutes(limits.max_speech_s)}.", remedy)


def trimmed(samples: np.ndarray, hz: int) -> np.ndarray:
    """Trim a sentence's silence to _LEAD_S before it and _TAIL_S after it. samples: float32 (n,)."""
    loud = np.flatnonzero(np.abs(samples) > _SILENCE * np.abs(samples).max(initial=0.0))
    if not loud.size:
        return samples
    start = max(0, int(loud[0]) - round(_LEAD_S * hz))
    stop = min(len(samples), int(loud[-1]) + 1 + round(_TAIL_S * hz))
    return samples[start:stop]


def save_spoken(
    path: Path, digest: str, captions: tuple[Caption, ...], turns: tuple[Turn, ...] = ()
) -> None:
    """Save which text a sound file speaks, by its digest, with its captions and turns. Raises: OSError."""
    data: dict[str, Any] = {"script": digest, "said": [asdict(one) for one in captions]}
    data |= {"turns": [asdict(one) for one in turns]} if turns else {}
    path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")


def load_spoken(path: Path, digest: str) -> tuple[tuple[Caption, ...], tuple[Turn, ...]] | None:
    """The captions and turns that save_spoken saved, if for the same text, voice and speed; else None."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        said, kept = tuple(Caption(**one) for one in data["said"]), data["script"]
        turns = tuple(Turn(**one) for one in data.get("turns", []))
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.info("no speech that was spoken before: %s", type(error).__name__)
        return None
    return (said, turns) if kept == digest else None


def read_text(path: Path) -> str:
    """Read a text file, or standard input for "-". Raises: BadInput."""
    if str(path) == "-":
        return sys.stdin.read(_MOST_BYTES)
    name = display_name(path)
    check_file(path, name, _MOST_BYTES, "text")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{name} is not in UTF-8.", "Save it as UTF-8 text.") from error
    except OSError as error:
        raise BadInput(f"{name} cannot be read ({error.strerror}).", "Choose another file.") from error
