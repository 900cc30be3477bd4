"""Which faces speak, and what each says: as flags, job lists and programs give it, checked first."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from avatar.errors import BadInput
from avatar.media.dialogue import DialogueLine, parse_dialogue
from avatar.media.files import display_name, quoted
from avatar.media.turns import Turn, read_turns
from avatar.request import Box
from avatar.settings import Speaking
from avatar.validation import nearest, shown

if TYPE_CHECKING:
    from avatar.events import Notice

MOST_SPEAKERS = 4
STEREO, NAMES = "stereo", "names"  # besides a list of turns, how the voices of one speech are told apart
SIDES = ("left", "right")  # the voices of a recording that is split by its channels
HOW_TO_NAME = "Write face=1,audio=anna.wav; face is a number counted from the left, or a point x,y."
SOURCES = {"audio": "a recording", "text": "a text", "label": "a label"}  # of what a speaker says


@dataclass(frozen=True)
class AskedSpeaker:
    """One face and what it says.

    face: as the setting has it, "2" or "0.3,0.4". audio: its own recording. label: the voice in a recording
    that is split, or in a text: left, right, or a name. text: its own, to be spoken by a voice at a speed; ""
    and None for those of all. Without any of them, this face listens. mask: where in the picture the
    diffusion engine lets the voice act, fractions of the whole portrait, or painted: a picture that is white
    there; None of both: around the face. face may be "" with either: it is then the face that lies in it.
    brush: what was painted with this one of brushes.BRUSHES, instead of white; nothing is no mask.
    audio_name, painted_name: the user's names of the files.
    """

    face: str
    audio: Path | None = None
    label: str = ""
    mask: Box | None = None
    audio_name: str | None = None
    text: str = ""
    voice: str = ""
    speed: float | None = None
    painted: Path | None = None
    painted_name: str | None = None
    brush: int | None = None

    @property
    def has_mask(self) -> bool:
        return self.mask is not None or self.painted is not None

    @property
    def mask_name(self) -> str:
        """What messages call its mask."""
        if self.painted is not None:
            return display_name(self.painted, self.painted_name)
        return ",".join(f"{side:g}" for side in self.mask or ())

    @property
    def name(self) -> str:
        """The recording's name, the text's beginning, or the voice's label; "" for one that listens."""
        if self.text:
            return quoted(self.text)
        return self.label if self.audio is None else display_name(self.audio, self.audio_name)


@dataclass(frozen=True)
class AskedSpeakers:
    """Who speaks where several faces may; made by asked_speakers.

    speakers: empty where the voices of a recording or text go to the faces from left to right. split: how the
    voices are told apart in one recording: STEREO, or the path of a list of turns; NAMES, in one text; ""
    where each has its own. turns: of that list, or of the text once it is spoken. dialogue: the text that is
    split. speaking: of texts, where a speaker has nothing of its own. notices: of how they were spoken.
    """

    speakers: tuple[AskedSpeaker, ...] = ()
    split: str = ""
    turns: tuple[Turn, ...] = ()
    dialogue: tuple[DialogueLine, ...] = ()
    speaking: Speaking = field(default_factory=Speaking)
    notices: tuple[Notice, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """The voices in one recording or text, in the order in which they are given to faces."""
        if self.split == STEREO:
            return SIDES
        said = self.dialogue or self.turns
        return tuple(dict.fromkeys(one.speaker for one in said))

    @property
    def num_speakers(self) -> int:
        """How many faces will be moved."""
        return len(self.speakers) or len(self.labels)

    @property
    def lines(self) -> tuple[DialogueLine, ...]:
        """What is to be spoken, in order; speakers with texts of their own are called by their place, "1"."""
        own = (DialogueLine(str(n), one.text, 1) for n, one in enumerate(self.speakers, 1) if one.text)
        return self.dialogue or tuple(own)

    @property
    def is_typed(self) -> bool:
        """Whether any of it is a text that is yet to be spoken."""
        if self.dialogue:
            return not self.turns
        return any(one.text and one.audio is None for one in self.speakers)

    def called(self, label: str) -> AskedSpeaker | None:
        """The speaker of one of the lines; None where a name has no speaker yet."""
        if not self.dialogue:
            return self.speakers[int(label) - 1]
        return next((one for one in self.speakers if one.label == label), None)

    @property
    def digest(self) -> str:
        """SHA-256 of the texts and of the way in which they are spoken; "" without any."""
        if not self.lines:
            return ""
        said = [
            (line.speaker, line.text, one.voice if one else "", one.speed if one else None)
            for line, one in ((line, self.called(line.speaker)) for line in self.lines)
        ]
        usual = [self.speaking.voice, self.speaking.speed]
        return hashlib.sha256(json.dumps([said, usual]).encode()).hexdigest()

    @property
    def recordings(self) -> tuple[Path, ...]:
        """The recordings that speakers have of their own."""
        return tuple(one.audio for one in self.speakers if one.audio is not None)

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that was named, except the one recording that is split."""
        painted = tuple(one.painted for one in self.speakers if one.painted is not None)
        by_words = self.split in ("", STEREO, NAMES)
        return (*self.recordings, *painted, *(() if by_words else (Path(self.split),)))

    @property
    def stem(self) -> str:
        """What a video is named after where no other recording was given."""
        stems = ("text" if one.text else one.audio.stem if one.audio else "" for one in self.speakers)
        return "-".join(dict.fromkeys(filter(None, stems)))

    @property
    def name(self) -> str:
        """The recordings' and texts' names, joined; "" where one recording is split."""
        if self.dialogue:
            return quoted(" ".join(line.text for line in self.dialogue))
        return " + ".join(one.name for one in self.speakers if one.text or one.audio is not None)


def asked_speakers(
    speakers: Sequence[AskedSpeaker],
    split: str | None,
    *,
    recording: bool,
    text: str = "",
    speaking: Speaking | None = None,
    where: str = "",
) -> AskedSpeakers | None:
    """Everything that was said about several speakers, checked; None where nothing was.

    split: STEREO, NAMES, or the path of a list of turns. recording: whether one for all was given. text: one
    for all. speaking: of texts. where: put before messages. Raises: BadInput.
    """
    if not speakers and not split:
        return None
    try:
        if len(speakers) > MOST_SPEAKERS:
            raise BadInput(
                f"{len(speakers)} speakers were given, but {MOST_SPEAKERS} at most can speak.",
                "Leave some out; those who are left out do not move.",
            )
        if text and split != NAMES:
            raise BadInput(
                "There are several speakers, and one text for all.",
                "Give each speaker a text of its own; or split names, with a name before each line.",
            )
        usual = speaking or Speaking()
        if not split:
            _check_own(speakers, recording)
            return AskedSpeakers(tuple(speakers), speaking=usual)
        if split == NAMES:
            _check_names(recording, text)
            asked = AskedSpeakers(tuple(speakers), split, dialogue=parse_dialogue(text), speaking=usual)
            return _labelled(asked, recording=True)
        turns = () if split == STEREO else read_turns(Path(split))
        asked = AskedSpeakers(tuple(speakers), split, turns)
        return _labelled(asked, recording)
    except BadInput as error:
        raise BadInput(f"{where}{error.message}", error.remedy) from error


def _check_own(speakers: Sequence[AskedSpeaker], recording: bool) -> None:
    if labelled := next((one.label for one in speakers if one.label), ""):
        raise BadInput(
            f"label {shown(labelled)} is for one recording or text with several voices.",
            "Give that, and split; or give each face a recording as audio, or a text, of its own.",
        )
    if voiced := next((one for one in speakers if (one.voice or one.speed) and not one.text), None):
        raise BadInput(
            f"The speaker of face {voiced.face} has a voice, but no text.",
            "Give text; or leave out voice and speed.",
        )
    has_own = any(one.audio is not None or one.text for one in speakers)
    if recording and not has_own:
        raise BadInput(
            "It is not said whose voices the recording holds.",
            "Give split, which tells them apart; or face, where one face says it all.",
        )
    if recording:
        raise BadInput(
            "There are speakers with recordings or texts of their own, and a recording for all.",
            "Leave out the one for all; or give split, which says whose voice is whose.",
        )
    if not has_own:
        raise BadInput("No speaker has a recording or a text.", HOW_TO_NAME)


def _check_names(recording: bool, text: str) -> None:
    if recording:
        raise BadInput("split names is for a text, not for a recording.", "Give a list of turns as split.")
    if not text.strip():
        raise BadInput(
            "There is no text to split.", "Give one whose lines begin with a name: Anna: Good morning."
        )


def _labelled(asked: AskedSpeakers, recording: bool) -> AskedSpeakers:
    """With the voices of one recording or text given to the speakers. Raises: BadInput."""
    if not recording:
        raise BadInput("There is no recording to split.", "Give the one in which all speak as audio.")
    speakers, labels = asked.speakers, asked.labels
    whole = "text" if asked.dialogue else "recording"
    if any(one.audio is not None or one.text for one in speakers):
        raise BadInput(
            f"With split, all voices come from one {whole}, but a speaker has something of its own.",
            "Leave out split, or the speaker's audio or text.",
        )
    if not asked.dialogue and any(one.voice or one.speed for one in speakers):
        raise BadInput("voice and speed are for a text.", "Leave them out of the speakers.")
    if len(labels) > MOST_SPEAKERS:
        raise BadInput(
            f"{'The text' if asked.dialogue else display_name(asked.split)} names {len(labels)} speakers:"
            f" {', '.join(labels)}. {MOST_SPEAKERS} at most can speak.",
            "Give several of them the same name, or remove their lines.",
        )
    if not any(one.label for one in speakers):  # in order: the first face says the first voice
        given = (*labels, *[""] * len(speakers))
        speakers = tuple(replace(one, label=label) for one, label in zip(speakers, given))
    for one in speakers:
        if one.label and one.label not in labels:
            raise BadInput(
                f"There is no voice {shown(one.label)}.{nearest(one.label, labels)}",
                f"The voices of the {whole} are: {', '.join(labels)}.",
            )
    said = [one.label for one in speakers if one.label]
    if twice := next((label for label in said if said.count(label) > 1), None):
        raise BadInput(f"Two faces would say the same voice, {twice}.", "Give each voice to one face.")
    return replace(asked, speakers=speakers)
