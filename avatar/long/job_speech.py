"""The speech of a job that is typed: spoken by one voice or by several, or kept from a run that was ended."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from avatar.media.atomic import copy, disk_error
from avatar.media.limits import InputLimits
from avatar.media.speaker_choice import AskedSpeakers
from avatar.paths import is_file
from avatar.request import Caption
from avatar.speech.catalogue import Catalogue
from avatar.speech.dialogue import Dialogue, DialogueSpeech
from avatar.speech.narration import Narrator, Script, load_spoken, save_spoken
from avatar.speech.voicing import Voicing

log = logging.getLogger(__name__)

_DIALOGUE = "dialogue.wav"  # in the working folder


@dataclass(frozen=True)
class JobSpeech:
    """What a job's video says.

    path: the sound, None where speakers have recordings of their own. captions: if it is typed. growing,
    spoken: see Request. speakers: where several faces speak. title: of a text. burn: captions into the video.
    sound: what was spoken, to be kept.
    """

    path: Path | None
    captions: tuple[Caption, ...] = ()
    growing: Path | None = None
    speakers: AskedSpeakers | None = None
    spoken: str = ""
    title: str | None = None
    burn: bool = False
    sound: Path | None = None

    def keep(self, target: Path) -> None:
        """Save what was spoken as target, since not every voice speaks a text the same way twice.

        Raises: AvatarError.
        """
        if self.sound is None or self.sound == target:
            return
        try:
            for suffix in (".wav", ".json"):
                copy(self.sound.with_suffix(suffix), target.with_suffix(suffix))
        except OSError as error:
            raise disk_error(error) from error


@contextmanager
def spoken_text(
    script: Script, work: Path, limits: InputLimits, kept: Path | None, *, may_grow: bool
) -> Iterator[JobSpeech]:
    """A text spoken by one voice, which perhaps goes on speaking; it is stopped at the end.

    kept: where a run that was ended saved it; None where that does not count. may_grow: whether what a slow
    voice has said so far will do. Raises: AvatarError.
    """
    narrator = Narrator.of(script, Catalogue(), limits)
    shown, burn = script.speaking.captions != "off", script.speaking.captions == "burned"
    made = partial(JobSpeech, spoken=script.digest, title=script.title, burn=burn)
    if kept is not None and (said := _load(kept, script.digest)) is not None:
        yield made(kept, said.captions if shown else (), sound=kept)
        return
    try:
        work.mkdir(parents=True, exist_ok=True)
        voicing = Voicing(narrator, work, limits)
    except OSError as error:
        raise disk_error(error) from error
    try:
        for _ in voicing.wait(may_grow):
            log.debug("a text is being spoken")
        if voicing.is_whole:
            _save(voicing.spoken, script.digest, DialogueSpeech(captions=voicing.captions))
            yield made(voicing.spoken, voicing.captions if shown else (), sound=voicing.spoken)
        else:
            yield made(voicing.wav, voicing.outline, voicing.journal)
    finally:
        voicing.stop()


def spoken_dialogue(asked: AskedSpeakers, work: Path, limits: InputLimits, kept: Path | None) -> JobSpeech:
    """The texts of several speakers, spoken to their end. kept: see spoken_text. Raises: AvatarError."""
    dialogue = Dialogue.of(asked, Catalogue(), limits)
    said = None if kept is None else _load(kept, asked.digest)
    sound = work / _DIALOGUE if kept is None or said is None else kept
    try:
        work.mkdir(parents=True, exist_ok=True)
        if said is None:
            for _ in dialogue.write(sound):
                log.debug("a dialogue is being spoken")
            said = dialogue.spoken
            _save(sound, asked.digest, said)
        speakers, split = dialogue.handed_over(sound, said, work)
    except OSError as error:
        raise disk_error(error) from error
    place = asked.speaking.captions
    return JobSpeech(
        split,
        () if place == "off" else said.captions,
        speakers=speakers,
        spoken=asked.digest,
        title=asked.name if asked.dialogue else None,
        burn=place == "burned",
        sound=sound,
    )


def _load(kept: Path, digest: str) -> DialogueSpeech | None:
    """What a sound file says, if it was saved for the same text, voices and speeds."""
    found = load_spoken(kept.with_suffix(".json"), digest) if is_file(kept) else None
    return None if found is None else DialogueSpeech(captions=found[0], turns=found[1])


def _save(sound: Path, digest: str, said: DialogueSpeech) -> None:
    try:
        save_spoken(sound.with_suffix(".json"), digest, said.captions, said.turns)
    except OSError as error:
        raise disk_error(error) from error
