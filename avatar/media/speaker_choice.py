"""Which faces speak, and what each says: as flags, job lists and programs give it, checked first."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from avatar.errors import BadInput
from avatar.media.face_choice import face_words
from avatar.media.files import display_name
from avatar.media.framing import parse_picture
from avatar.media.turns import Turn, read_turns
from avatar.request import Box
from avatar.settings import Picture
from avatar.validation import nearest, shown

MOST_SPEAKERS = 4
STEREO = "stereo"
SIDES = ("left", "right")  # the voices of a recording that is split by its channels
KEYS = ("face", "audio", "label", "mask")
HOW_TO_NAME = "Write face=1,audio=anna.wav; face is a number counted from the left, or a point x,y."
_NEXT_KEY = re.compile(r",\s*(?=[a-z_]+\s*=)")


@dataclass(frozen=True)
class AskedSpeaker:
    """One face and what it says.

    face: as the setting has it, "2" or "0.3,0.4". audio: its own recording. label: the voice in a recording
    that is split: left, right, or a name in the list of turns. Without both, this face listens. mask: where
    in the picture the diffusion engine lets the voice act, fractions of the whole portrait; None: around the
    face. audio_name: the user's name of the recording.
    """

    face: str
    audio: Path | None = None
    label: str = ""
    mask: Box | None = None
    audio_name: str | None = None

    @property
    def name(self) -> str:
        """The recording's name, or the voice's; "" for one that listens."""
        return self.label if self.audio is None else display_name(self.audio, self.audio_name)


@dataclass(frozen=True)
class AskedSpeakers:
    """Who speaks where several faces may; made by asked_speakers.

    speakers: empty where the voices of a recording go to the faces from left to right. split: how the voices
    are told apart in one recording: STEREO, or the path of a list of turns; "" where each has a recording.
    turns: of that list.
    """

    speakers: tuple[AskedSpeaker, ...] = ()
    split: str = ""
    turns: tuple[Turn, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """The voices in one recording, in the order in which they are given to faces."""
        if self.split == STEREO:
            return SIDES
        return tuple(dict.fromkeys(turn.speaker for turn in self.turns))

    @property
    def num_speakers(self) -> int:
        """How many faces will be moved."""
        return len(self.speakers) or len(self.labels)

    @property
    def recordings(self) -> tuple[Path, ...]:
        """The recordings that speakers have of their own."""
        return tuple(one.audio for one in self.speakers if one.audio is not None)

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that was named, except the one recording that is split."""
        return self.recordings if self.split in ("", STEREO) else (*self.recordings, Path(self.split))

    @property
    def stem(self) -> str:
        """What a video is named after where no other recording was given."""
        return "-".join(path.stem for path in self.recordings)

    @property
    def name(self) -> str:
        """The recordings' names, joined; "" where one recording is split."""
        return " + ".join(one.name for one in self.speakers if one.audio is not None)


def asked_speakers(
    speakers: Sequence[AskedSpeaker], split: str | None, *, recording: bool, where: str = ""
) -> AskedSpeakers | None:
    """Everything that was said about several speakers, checked; None where nothing was.

    split: STEREO, or the path of a list of turns. recording: whether one for all was given. where: put before
    messages. Raises: BadInput.
    """
    if not speakers and not split:
        return None
    try:
        if len(speakers) > MOST_SPEAKERS:
            raise BadInput(
                f"{len(speakers)} speakers were given, but {MOST_SPEAKERS} at most can speak.",
                "Leave some out; those who are left out do not move.",
            )
        if not split:
            _check_own_recordings(speakers, recording)
            return AskedSpeakers(tuple(speakers))
        turns = () if split == STEREO else read_turns(Path(split))
        asked = AskedSpeakers(tuple(speakers), split, turns)
        return _labelled(asked, recording)
    except BadInput as error:
        raise BadInput(f"{where}{error.message}", error.remedy) from error


def _check_own_recordings(speakers: Sequence[AskedSpeaker], recording: bool) -> None:
    if labelled := next((one.label for one in speakers if one.label), ""):
        raise BadInput(
            f"label {shown(labelled)} is for one recording with several voices.",
            "Give that recording and split; or give each face a recording of its own as audio.",
        )
    if recording and not any(one.audio is not None for one in speakers):
        raise BadInput(
            "It is not said whose voices the recording holds.",
            "Give split, which tells them apart; or face, where one face says it all.",
        )
    if recording:
        raise BadInput(
            "There are speakers with recordings of their own, and a recording for all.",
            "Leave out the one for all; or give split, which says whose voice is whose.",
        )
    if not any(one.audio is not None for one in speakers):
        raise BadInput("No speaker has a recording.", HOW_TO_NAME)


def _labelled(asked: AskedSpeakers, recording: bool) -> AskedSpeakers:
    """With the voices of one recording given to the speakers. Raises: BadInput."""
    if not recording:
        raise BadInput("There is no recording to split.", "Give the one in which all speak as audio.")
    speakers, labels = asked.speakers, asked.labels
    if any(one.audio is not None for one in speakers):
        raise BadInput(
            "With split, all voices come from one recording, but a speaker has one of its own.",
            "Leave out split, or the speaker's audio.",
        )
    if len(labels) > MOST_SPEAKERS:
        raise BadInput(
            f"{display_name(asked.split)} names {len(labels)} speakers: {', '.join(labels)}."
            f" {MOST_SPEAKERS} at most can speak.",
            "Give several of them the same name, or remove their lines.",
        )
    if not any(one.label for one in speakers):  # in order: the first face says the first voice
        given = (*labels, *[""] * len(speakers))
        speakers = tuple(replace(one, label=label) for one, label in zip(speakers, given))
    for one in speakers:
        if one.label and one.label not in labels:
            raise BadInput(
                f"There is no voice {shown(one.label)}.{nearest(one.label, labels)}",
                f"The voices of the recording are: {', '.join(labels)}.",
            )
    said = [one.label for one in speakers if one.label]
    if twice := next((label for label in said if said.count(label) > 1), None):
        raise BadInput(f"Two faces would say the same voice, {twice}.", "Give each voice to one face.")
    return replace(asked, speakers=speakers)


def speaker_of_flag(text: str) -> AskedSpeaker:
    """A speaker as the command line has it: "face=2,audio=anna.wav". Raises: BadInput."""
    return speaker_of(speaker_words(text))


def speaker_words(text: str) -> dict[str, str]:
    """The keys and values of "face=2,audio=anna.wav". Raises: BadInput."""
    given: dict[str, str] = {}
    for part in _NEXT_KEY.split(text.strip()):
        key, equals, value = part.partition("=")
        if not equals:
            raise BadInput(f"speaker {shown(text)} is not understood.", HOW_TO_NAME)
        if key.strip() in given:
            raise BadInput(f"speaker {shown(text)} has two of {key.strip()}.", HOW_TO_NAME)
        given[key.strip()] = value.strip()
    return given


def speaker_of(given: Mapping[str, Any], folder: Path | None = None) -> AskedSpeaker:
    """A speaker by its keys, as TOML, JSON and flags have them. folder: of relative paths.

    Raises: BadInput naming the key and what is wrong with it.
    """
    for key in given:
        if key not in KEYS:
            raise BadInput(
                f"speaker: unknown key {shown(key)}.{nearest(key, KEYS)}", f"Keys: {', '.join(KEYS)}."
            )
    face = face_words(given.get("face"))
    if not face:
        raise BadInput("A speaker has no face.", HOW_TO_NAME)
    for key in ("audio", "label"):
        if not isinstance(given.get(key, ""), str) or given.get(key) == "":
            raise BadInput(f"speaker: {key} is {shown(given[key])}.", f"Give {key} as text, or leave it out.")
    audio, label = given.get("audio"), given.get("label", "")
    if audio and label:
        raise BadInput(
            f"The speaker of face {face} has a recording and a label.",
            "audio is for a recording of its own, label for a voice of one recording: leave one out.",
        )
    picture: Picture = parse_picture("speaker: ", face=face)
    path = None if audio is None else Path(audio) if folder is None else folder / audio
    mask = given.get("mask")
    return AskedSpeaker(picture.face, path, label, None if mask is None else mask_of(mask))


def mask_of(value: Any) -> Box:
    """A box as [left, top, right, bottom], or as text; fractions of the picture. Raises: BadInput."""
    parts = value.split(",") if isinstance(value, str) else value
    try:
        if any(isinstance(part, bool) for part in parts):
            raise ValueError("not a number")
        left, top, right, bottom = (float(part) for part in parts)
    except (TypeError, ValueError) as error:
        raise _bad_mask(value) from error
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):  # refuses nan, too
        raise _bad_mask(value)
    return left, top, right, bottom


def _bad_mask(value: Any) -> BadInput:
    return BadInput(
        f"speaker: mask is {shown(value)}.",
        "It must be left,top,right,bottom, fractions of the picture from 0 to 1, like 0,0,0.5,1.",
    )
