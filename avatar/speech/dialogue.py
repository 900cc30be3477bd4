"""Speak what several speakers say, each with its own voice and one after another, into one sound file."""

from __future__ import annotations

import logging
import wave
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from avatar.errors import BadInput
from avatar.events import Notice
from avatar.geometry import SOUND_HZ
from avatar.media.limits import InputLimits
from avatar.media.speaker_choice import AskedSpeaker, AskedSpeakers
from avatar.media.turns import Turn
from avatar.media.voice_tracks import split_turns
from avatar.request import Caption
from avatar.settings import Speaking
from avatar.speech.catalogue import Catalogue
from avatar.speech.narration import Narrator, Script, SpokenSentence, too_long

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DialogueSpeech:
    """What was said: who spoke when, and each sentence. In seconds from the sound file's beginning."""

    turns: tuple[Turn, ...] = ()
    captions: tuple[Caption, ...] = ()


class Dialogue:
    """Speaks texts of several speakers that have been checked. Made by Dialogue.of."""

    def __init__(
        self,
        asked: AskedSpeakers,
        narrators: Sequence[Narrator],
        limits: InputLimits,
        notices: Sequence[Notice],
    ) -> None:
        """narrators: of asked.lines, in order."""
        self.asked, self.notices = asked, tuple(notices)
        self._narrators, self._limits = narrators, limits
        self.spoken = DialogueSpeech()

    @classmethod
    def of(cls, asked: AskedSpeakers, catalogue: Catalogue, limits: InputLimits | None = None) -> Dialogue:
        """Check the texts of speakers, before anything loads.

        Who has no voice of its own gets one that is here and that nobody else has, where there is one; the
        first one gets the usual voice. Raises: BadInput for an empty or overlong text, or a voice that does
        not exist or cannot read it.
        """
        limits = limits or InputLimits()
        speaking = _speaking(asked, catalogue)
        narrators = []
        for line in asked.lines:
            try:
                narrators.append(Narrator.of(Script(line.text, speaking[line.speaker]), catalogue, limits))
            except BadInput as error:
                who = line.speaker if asked.dialogue else f"Speaker {line.speaker}"
                raise BadInput(f"{who}: {error.message}", error.remedy) from error
        return cls(asked, narrators, limits, _shared(asked, speaking))

    def write(self, target: Path) -> Iterator[None]:
        """Speak into a canonical mono WAV; yield after each sentence. What was said is then in `spoken`.

        The file is deleted unless all is spoken to its end. Raises: AvatarError, OSError.
        """
        turns: list[Turn] = []
        captions: list[Caption] = []
        total = 0
        with ExitStack() as undo:
            undo.callback(target.unlink, missing_ok=True)
            with wave.open(str(target), "wb") as out:
                out.setparams((1, 2, SOUND_HZ, 0, "NONE", ""))
                for line, narrator in zip(self.asked.lines, self._narrators, strict=True):
                    begin = total
                    for said in narrator.sentences():
                        captions.append(_later(said.caption, begin / SOUND_HZ))
                        samples = _at_sound_hz(said)
                        total += len(samples)
                        if total > self._limits.max_speech_s * SOUND_HZ:
                            raise too_long(self._limits)
                        out.writeframesraw(samples.tobytes())
                        yield
                    if total == begin:
                        raise _not_spoken(narrator.voice.name, line.speaker)
                    turns.append(Turn(begin / SOUND_HZ, total / SOUND_HZ, line.speaker, line.line))
            undo.pop_all()
        self.spoken = DialogueSpeech(tuple(turns), tuple(captions))

    def handed_over(
        self, sound: Path, said: DialogueSpeech, folder: Path
    ) -> tuple[AskedSpeakers, Path | None]:
        """The speakers with what was spoken for them, and the sound that is split among them, if it is.

        sound: what write made; said: what was in it. folder: for the recordings of those who have texts of
        their own. Raises: OSError.
        """
        asked = replace(self.asked, notices=self.notices)
        if asked.dialogue:
            return replace(asked, turns=said.turns), sound
        speakers: list[AskedSpeaker] = []
        for number, one in enumerate(asked.speakers, 1):
            if one.text:
                own = folder / f"text-{number}.wav"
                split_turns(sound, said.turns, str(number), own)
                one = replace(one, audio=own, audio_name=one.name)
            speakers.append(one)
        return replace(asked, speakers=tuple(speakers)), None


def _speaking(asked: AskedSpeakers, catalogue: Catalogue) -> dict[str, Speaking]:
    """How each speaker of the lines speaks, by its label. Raises: BadInput for an unknown voice."""
    said: dict[str, str] = {}
    for line in asked.lines:
        said[line.speaker] = f"{said.get(line.speaker, '')}{line.text}\n"
    own = {label: asked.called(label) for label in said}
    voices = {label: one.voice for label, one in own.items() if one is not None and one.voice}
    for label, text in said.items():
        if label not in voices:
            voices[label] = _free_voice(asked.speaking.voice, text, list(voices.values()), catalogue)
    return {
        label: replace(
            asked.speaking,
            voice=voices[label],
            speed=asked.speaking.speed if one is None or one.speed is None else one.speed,
        )
        for label, one in own.items()
    }


def _free_voice(usual: str, text: str, taken: Sequence[str], catalogue: Catalogue) -> str:
    """The usual voice; where that is taken, one that needs no download and reads the text, if any does."""
    if usual not in taken:
        return usual
    _, known = catalogue.find(usual)
    here = [voice for voice in catalogue.voices() if not voice.missing and not voice.fetch_mb]
    here.sort(key=lambda voice: voice.language != known.language)
    for voice in here:
        if voice.name in taken:
            continue
        try:
            catalogue.check(text, voice.name)
        except BadInput as error:
            log.info("not for this text: %s", error.message)
            continue
        return voice.name
    return usual


def _shared(asked: AskedSpeakers, speaking: dict[str, Speaking]) -> list[Notice]:
    """That several speak with one voice, where nobody has asked for that."""
    named = [one.voice for label in speaking if (one := asked.called(label)) is not None and one.voice]
    voices = [one.voice for one in speaking.values()]
    for voice in dict.fromkeys(voices):
        if voices.count(voice) > max(1, named.count(voice)):
            text = (
                f"{voices.count(voice)} speakers have the same voice, {voice}: no other one is here."
                " Give each a voice of its own; `python -m avatar voices` lists them."
            )
            return [Notice("same_voice", text, values={"voice": voice, "count": voices.count(voice)})]
    return []


def _not_spoken(voice: str, speaker: str) -> BadInput:
    return BadInput(
        f"The voice {voice} cannot pronounce any of what {speaker} says.",
        "Write it in words, or choose another voice.",
    )


def _later(caption: Caption, seconds: float) -> Caption:
    return Caption(caption.start_s + seconds, caption.end_s + seconds, caption.text)


def _at_sound_hz(said: SpokenSentence) -> np.ndarray:
    """A sentence's samples, int16 (n,) at SOUND_HZ."""
    import soxr

    samples = soxr.resample(said.samples, said.hz, SOUND_HZ)
    return np.rint(samples * np.float32(32767)).clip(-32768, 32767).astype("<i2")
