"""Catalogue of all voices: list them, find one by name, and suggest another for an unreadable script."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cached_property

from avatar.errors import BadInput
from avatar.settings import SPEAKING, Speaking
from avatar.speech.hibari_voices import EmbeddedVoices
from avatar.speech.kokoro import KokoroVoices
from avatar.speech.remote import RemoteVoices
from avatar.speech.voices import SpeechEngine, Voice
from avatar.speech.writing_systems import is_spoken, listed, scripts_in
from avatar.validation import made, nearest, shown

log = logging.getLogger(__name__)


class Unreadable(BadInput):
    """A text has letters that its voice does not read.

    voice: its name. scripts: those that it does not read. other: a voice that does, None if there is none.
    """

    def __init__(self, voice: str, scripts: list[str], other: Voice | None) -> None:
        remedy = "No voice here does; a speech server may: see $AVATAR_SPEECH_URL."
        if other is not None:
            remedy = f"Choose {other.name}, which does{_after(other)}."
        super().__init__(f"The voice {voice} does not read {listed(scripts)}.", remedy)
        self.voice, self.scripts, self.other = voice, scripts, other
        self.args = (voice, scripts, other)  # constructor arguments, for unpickling


class Catalogue:
    """The voices of this machine and of the speech server set in the environment."""

    @cached_property
    def engines(self) -> tuple[SpeechEngine, ...]:
        embedded = EmbeddedVoices()
        return (embedded, KokoroVoices(embedded.phonemes), RemoteVoices.from_environment())

    def voices(self) -> list[Voice]:
        """Every voice, with those that need no download first."""
        return [voice for engine in self.engines for voice in engine.voices()]

    def find(self, name: str) -> tuple[SpeechEngine, Voice]:
        """The engine and voice of a name. Raises: BadInput that suggests the nearest name."""
        for engine in self.engines:
            for voice in engine.voices():
                if voice.name == name:
                    return engine, voice
        names = [voice.name for voice in self.voices()]
        raise BadInput(
            f"There is no voice {shown(name)}.{nearest(name, names)}",
            "`python -m avatar voices` lists them; 'heart' is there at once.",
        )

    def check(self, text: str, name: str) -> tuple[SpeechEngine, Voice]:
        """The engine and voice for reading a text. Raises: BadInput, before anything loads.

        For a text in a script that the voice cannot read, the error suggests a voice that can.
        """
        engine, voice = self.find(name)
        if not is_spoken(text):
            raise BadInput("There is nothing to say in the text.", "Write a sentence.")
        if voice.missing:
            engine, voice = self._namesake(engine, voice)
        if voice.missing:
            raise BadInput(f"The voice {voice.name} cannot speak here yet.", voice.missing)
        scripts = scripts_in(text)
        unknown = [script for script in scripts if not voice.reads([script])]
        if unknown:
            raise Unreadable(voice.name, unknown, self._instead(scripts, unknown))
        return engine, voice

    def _namesake(self, engine: SpeechEngine, voice: Voice) -> tuple[SpeechEngine, Voice]:
        """The same person's voice by another engine, if this one cannot speak here; else this one again."""
        for other in self.engines:
            for one in other.voices():
                same = one.name.rpartition("_")[2] == voice.name and one.language == voice.language
                if same and not one.missing:
                    log.warning("the voice %s cannot speak here: %s does", voice.name, one.name)
                    return other, one
        return engine, voice

    def _instead(self, scripts: list[str], unknown: list[str]) -> Voice | None:
        """A voice for scripts that another cannot read."""
        for wanted in (scripts, unknown):
            able = [voice for voice in self.voices() if voice.reads(wanted)]
            # kana means Japanese; Han alone is taken for Chinese
            able.sort(key=lambda voice: bool(voice.missing))
            if able:
                return able[0]
        return None


def _after(voice: Voice) -> str:
    """What a voice still needs before it can speak, as the end of a sentence."""
    if voice.missing:
        return f" ({voice.missing[0].lower()}{voice.missing[1:]})"
    return f" (its first use downloads {voice.fetch_mb} MB)" if voice.fetch_mb else ""


_ALLOWED: Mapping[str, str] = {name: one.setting.allowed for name, one in SPEAKING.items()}


def speaking(where: str = "", **given: object) -> Speaking:
    """Settings of speaking from a user's values; None keeps the default. where: prefix of names in errors.

    Raises: BadInput for a wrong type or value.
    """
    return made(Speaking, _ALLOWED, where, given)
