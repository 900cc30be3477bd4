"""Several speakers made ready: their faces found in the portrait, their voices written as WAVs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from hashlib import sha256
from math import log10
from pathlib import Path

import numpy as np

from avatar.errors import BadInput
from avatar.events import Notice
from avatar.geometry import SOUND_HZ
from avatar.media.face_choice import HOW_TO_CHOOSE, FaceBox, FaceFinder, Point, chosen
from avatar.media.files import check_file, display_name
from avatar.media.framing import box_within, cut_of
from avatar.media.limits import InputLimits
from avatar.media.readers import Reader
from avatar.media.speaker_choice import HOW_TO_NAME, STEREO, AskedSpeaker, AskedSpeakers
from avatar.media.speech_reader import Speech, SpeechReader
from avatar.media.turns import check_within
from avatar.media.voice_tracks import mix, split_channels, split_turns
from avatar.preset import Preset
from avatar.request import Box, Speaker
from avatar.settings import Picture

SPEECH = "speech.wav"  # in a run's folder


@dataclass(frozen=True)
class PlacedSpeakers:
    """Speakers whose faces were found. speakers: without their voices' files. numbers: of their faces."""

    asked: AskedSpeakers
    speakers: tuple[Speaker, ...] = ()
    numbers: tuple[int, ...] = ()
    other_faces: tuple[Box, ...] = ()
    portrait_name: str = ""

    @property
    def notice(self) -> Notice:
        """Who speaks what, in words."""
        named = [f"{number}: {one.name}" for number, one in zip(self.numbers, self.speakers) if one.name]
        silent = [str(number) for number, one in zip(self.numbers, self.speakers) if not one.name]
        who, name = "; ".join(named), self.portrait_name
        text = f"Faces that speak in {name}, counted from the left: {who}."
        values = {"who": who, "name": name, "silent": ", ".join(silent)}
        if not silent:
            return Notice("speakers", text, values=values)
        return Notice("speakers_listen", f"{text} Without a voice: {values['silent']}.", values=values)


@dataclass(frozen=True)
class WrittenVoices:
    """What is heard of all, as the request's speech, and the speakers with their voices' files."""

    speech: Speech
    speakers: tuple[Speaker, ...] = ()
    notices: tuple[Notice, ...] = field(default_factory=tuple)


def check_together(
    asked: AskedSpeakers,
    picture: Picture,
    preset: Preset,
    *,
    points: Mapping[str, Point] | None,
    head_only: bool,
    limits: InputLimits,
) -> None:
    """Refuse what cannot be asked together with several speakers. Raises: BadInput naming it."""
    reasons = {
        "face": ("speaker says which faces speak", bool(picture.face)),
        "framing": ("it crops to one face", picture.framing != "whole"),
        "points": ("they are placed on one face", bool(points)),
        "head_only": ("it is for one head", head_only),
        "trim": ("the recordings would no longer fit each other", preset.generation.trim),
    }
    for name, (reason, given) in reasons.items():
        if given:
            raise BadInput(f"Several speakers and {name} exclude each other: {reason}.", f"Leave out {name}.")
    for one in asked.speakers:
        if one.mask is not None and preset.engine == "preview":
            raise BadInput(
                "The preview engine cannot honour mask: each voice moves its own face alone.",
                "Leave out mask, or choose a preset with another engine.",
            )
        if one.audio is not None:
            check_file(one.audio, one.name, limits.max_speech_bytes, "speech")


def place_speakers(
    asked: AskedSpeakers, pixels: np.ndarray, picture: Picture, finder: FaceFinder, name: str
) -> PlacedSpeakers:
    """Find the face of each speaker in a portrait, uint8 (H, W, 3) RGB, that is yet to be framed.

    Boxes come out in fractions of the framed portrait. name: the portrait's.
    Raises: BadInput for a face that is not there, or that two speakers share.
    """
    found = finder.faces(pixels)
    asked = asked if asked.speakers else _from_the_left(asked, len(found.boxes), name)
    places: dict[int, AskedSpeaker] = {}
    for one in asked.speakers:
        index = chosen(found, one.face, name)
        if index in places:
            raise BadInput(
                f"Two speakers have the same face, number {index + 1} from the left in {name}.",
                f"Give each another face. {HOW_TO_CHOOSE}",
            )
        places[index] = one
    height, width = pixels.shape[:2]
    cut = cut_of(width, height, picture, None)

    def within(box: FaceBox) -> Box:
        return box_within(box, cut, width, height)

    speakers = tuple(
        Speaker(
            face=within(found.boxes[index]),
            name=one.name,
            spoken=_spoken(asked, one),
            mask=None if one.mask is None else within(FaceBox(*one.mask)),
        )
        for index, one in places.items()
    )
    others = tuple(within(box) for index, box in enumerate(found.boxes) if index not in places)
    return PlacedSpeakers(asked, speakers, tuple(index + 1 for index in places), others, name)


def _spoken(asked: AskedSpeakers, one: AskedSpeaker) -> str:
    """A digest of what a speaker says and how, if that is a text; else ""."""
    if not (one.text or (asked.dialogue and one.label)):
        return ""
    label = one.label or str(asked.speakers.index(one) + 1)
    return sha256(f"{asked.digest} {label}".encode()).hexdigest()


def write_voices(
    placed: PlacedSpeakers | None,
    recording: Path | None,
    name: str,
    work: Path,
    *,
    reader: Reader,
    limits: InputLimits,
    undo: ExitStack,
) -> WrittenVoices:
    """Write each voice, and what is heard of all as SPEECH, into work; removed again by undo.

    placed: None for a single speaker. recording: that speaker's, or the one that is split; None where each
    has one. name: of what is heard. Raises: BadInput, OSError.
    """
    speech = work / SPEECH
    undo.callback(speech.unlink, missing_ok=True)
    if placed is None:
        assert recording is not None, "a single speaker has one"
        return WrittenVoices(reader.speech(recording, speech, name=name, limits=limits))
    targets = [None if not one.name else work / f"voice-{n}.wav" for n, one in enumerate(placed.speakers, 1)]
    for path in targets:
        if path is not None:
            undo.callback(path.unlink, missing_ok=True)
    speakers = tuple(replace(one, voice=target) for one, target in zip(placed.speakers, targets, strict=True))
    if not placed.asked.split:
        return _mixed(placed, speakers, speech, reader, limits)
    assert recording is not None, "asked_speakers has looked"
    heard = reader.speech(recording, speech, name=name, limits=limits)
    _split(placed.asked, targets, heard, speech, name, limits)
    return WrittenVoices(heard, speakers, (placed.notice, *placed.asked.notices, *_unseen(placed, name)))


def _from_the_left(asked: AskedSpeakers, num_faces: int, name: str) -> AskedSpeakers:
    """The voices of one recording given to the faces from left to right. Raises: BadInput."""
    labels = asked.labels
    if num_faces != len(labels):
        faces = "1 face" if num_faces == 1 else f"{num_faces} faces"
        voices = "1 voice" if len(labels) == 1 else f"{len(labels)} voices"
        raise BadInput(
            f"The {'text' if asked.dialogue else 'recording'} has {voices} ({', '.join(labels)}),"
            f" and {faces} can be seen in {name}.",
            "Say which face says which voice: speaker face=1,label=" + labels[0] + ".",
        )
    speakers = (AskedSpeaker(str(number), label=label) for number, label in enumerate(labels, 1))
    return replace(asked, speakers=tuple(speakers))


def _unseen(placed: PlacedSpeakers, name: str) -> list[Notice]:
    """That voices of the recording, whose name this is, belong to no face."""
    said = [one.name for one in placed.speakers]
    unseen = ", ".join(label for label in placed.asked.labels if label not in said)
    if not unseen:
        return []
    text = f"{unseen} in {name} will be heard, but no face says it."
    return [Notice("speakers_unseen", text, "warning", values={"who": unseen, "name": name})]


def _mixed(
    placed: PlacedSpeakers, speakers: Sequence[Speaker], target: Path, reader: Reader, limits: InputLimits
) -> WrittenVoices:
    notices = [placed.notice, *placed.asked.notices]
    heard: list[Speech] = []
    for one, speaker in zip(placed.asked.speakers, speakers, strict=True):
        if one.audio is not None:
            assert speaker.voice is not None
            heard.append(reader.speech(one.audio, speaker.voice, name=one.name, limits=limits))
            notices += [notice for notice in heard[-1].notices if notice not in notices]
    gain = mix([one.voice for one in speakers if one.voice is not None], target)
    if gain < 1:
        change = f"{-20 * log10(gain):.1f}"
        text = f"Together the recordings are louder than full scale; all were made quieter by {change} dB."
        notices.append(Notice("mix_quieter", text, values={"change": change}))
    with SpeechReader(target) as mixed:
        speech = replace(
            max(heard, key=lambda one: one.num_samples), notices=(), num_channels=mixed.num_channels
        )
    return WrittenVoices(speech, tuple(speakers), tuple(notices))


def _split(
    asked: AskedSpeakers,
    targets: Sequence[Path | None],
    heard: Speech,
    recording: Path,
    name: str,
    limits: InputLimits,
) -> None:
    """Write the voices of one canonical recording. Raises: BadInput."""
    by_label = {one.label: target for one, target in zip(asked.speakers, targets, strict=True)}
    if asked.split == STEREO:
        if heard.channels > 2 or (heard.channels == 2 and heard.num_channels == 1):
            what = "too long" if heard.channels == 2 else f"a recording of {heard.channels} channels"
            raise BadInput(
                f"{name} is {what}: it cannot be split in left and right.",
                f"Give each face a recording of its own. {HOW_TO_NAME}",
            )
        sides = [by_label.get(side) for side in asked.labels]
        split_channels(recording, sides, name, limits.silence_dbfs)
        return
    check_within(asked.turns, heard.num_samples / SOUND_HZ, display_name(asked.split), name)
    for label, target in by_label.items():
        if target is not None:
            split_turns(recording, asked.turns, label, target)
