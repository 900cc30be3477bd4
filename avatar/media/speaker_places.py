"""Several speakers found in the portrait: their faces, and where each voice acts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import sha256

import numpy as np

from avatar.errors import BadInput
from avatar.events import Notice
from avatar.media import masks
from avatar.media.face_choice import HOW_TO_CHOOSE, FaceBox, FaceFinder, FoundFaces, chosen
from avatar.media.files import check_file
from avatar.media.framing import box_within, cut_of
from avatar.media.limits import InputLimits
from avatar.media.readers import Reader
from avatar.media.speaker_choice import AskedSpeaker, AskedSpeakers
from avatar.preset import Preset
from avatar.request import Box, Speaker
from avatar.settings import Picture


@dataclass(frozen=True)
class PlacedSpeakers:
    """Speakers whose faces were found. speakers: without their voices' files. numbers: of their faces."""

    asked: AskedSpeakers
    speakers: tuple[Speaker, ...] = ()
    numbers: tuple[int, ...] = ()
    other_faces: tuple[Box, ...] = ()
    portrait_name: str = ""
    mask_notices: tuple[Notice, ...] = ()

    @property
    def notices(self) -> tuple[Notice, ...]:
        """Who speaks what, in words, and what is to be said of masks and voices."""
        return (self._who, *self.mask_notices, *self.asked.notices)

    @property
    def _who(self) -> Notice:
        named = [f"{number}: {one.name}" for number, one in zip(self.numbers, self.speakers) if one.name]
        silent = [str(number) for number, one in zip(self.numbers, self.speakers) if not one.name]
        who, name = "; ".join(named), self.portrait_name
        text = f"Faces that speak in {name}, counted from the left: {who}."
        values = {"who": who, "name": name, "silent": ", ".join(silent)}
        if not silent:
            return Notice("speakers", text, values=values)
        return Notice("speakers_listen", f"{text} Without a voice: {values['silent']}.", values=values)


def check_together(
    asked: AskedSpeakers,
    picture: Picture,
    preset: Preset,
    *,
    points: bool,
    head_only: bool,
    limits: InputLimits,
) -> None:
    """Refuse what cannot be asked together with several speakers. Raises: BadInput naming it.

    points: whether face points were placed.
    """
    reasons = {
        "face": ("speaker says which faces speak", bool(picture.face)),
        "framing": ("it crops to one face", picture.framing != "whole"),
        "points": ("they are placed on one face", points),
        "head_only": ("it is for one head", head_only),
        "trim": ("the recordings would no longer fit each other", preset.generation.trim),
    }
    for name, (reason, given) in reasons.items():
        if given:
            raise BadInput(f"Several speakers and {name} exclude each other: {reason}.", f"Leave out {name}.")
    for one in asked.speakers:
        if one.has_mask and one.face and preset.engine == "preview":
            raise BadInput(
                "The preview engine cannot honour mask: each voice moves its own face alone.",
                "Leave out mask; or leave out face: then the mask says which one. Other engines take both.",
            )
        if one.audio is not None:
            check_file(one.audio, one.name, limits.max_speech_bytes, "speech")
        if one.painted is not None:
            check_file(one.painted, one.mask_name, limits.max_portrait_bytes, "mask")


def place_speakers(
    asked: AskedSpeakers,
    pixels: np.ndarray,
    picture: Picture,
    finder: FaceFinder,
    name: str,
    *,
    engine: str,
    reader: Reader,
    limits: InputLimits,
) -> PlacedSpeakers:
    """Find the face of each speaker in a portrait, uint8 (H, W, 3) RGB, that is yet to be framed.

    Boxes and masks come out as those of the framed portrait. name: the portrait's. engine: the preview has no
    use of a mask but to find its face. reader: of masks.
    Raises: BadInput for a face that is not there, or that two speakers share, and for masks of no use.
    """
    found = finder.faces(pixels)
    asked = asked if asked.speakers else _from_the_left(asked, len(found.boxes), name)
    height, width = pixels.shape[:2]
    read = {
        number: _mask_of(one, width, height, reader, limits)
        for number, one in enumerate(asked.speakers)
        if one.has_mask
    }
    painted = {number: mask for number, mask in read.items() if mask is not None}
    if not painted and any(one.brush is not None for one in asked.speakers):
        raise BadInput("Nothing is painted.", "Paint where each speaker is, or leave out the painting.")
    masks.check_apart([(asked.speakers[number].mask_name, mask) for number, mask in painted.items()])
    places: dict[int, AskedSpeaker] = {}
    notices: list[Notice] = []
    for number, one in enumerate(asked.speakers):
        index = _face_of(one, found, painted.get(number), name)
        if index in places:
            raise BadInput(
                f"Two speakers have the same face, number {index + 1} from the left in {name}.",
                f"Give each another face. {HOW_TO_CHOOSE}",
            )
        places[index] = one
        if number in painted and engine != "preview":
            notices += _beside(painted[number], found.boxes[index], index + 1, one.mask_name)
    cut = cut_of(width, height, picture, None)

    def within(box: FaceBox) -> Box:
        return box_within(box, cut, width, height)

    by_mask = engine != "preview"
    if painted and not by_mask:
        notices.append(_chooses_alone())
    speakers = tuple(
        Speaker(
            face=within(found.boxes[index]),
            name=one.name,
            spoken=_spoken(asked, one),
            mask=within(FaceBox(*one.mask)) if one.mask is not None and by_mask else None,
            painted=(
                masks.png_within(painted[number], cut, width)
                if one.painted is not None and number in painted and by_mask
                else None
            ),
        )
        for number, (index, one) in enumerate(places.items())
    )
    others = tuple(within(box) for index, box in enumerate(found.boxes) if index not in places)
    numbers = tuple(index + 1 for index in places)
    return PlacedSpeakers(asked, speakers, numbers, others, name, tuple(notices))


def _mask_of(
    one: AskedSpeaker, width: int, height: int, reader: Reader, limits: InputLimits
) -> np.ndarray | None:
    """A speaker's mask over the whole portrait, see masks.fitted; None for an unused brush.

    Raises: BadInput.
    """
    if one.painted is None:
        assert one.mask is not None, "it has one of both"
        return masks.of_box(one.mask, width, height)
    pixels = reader.mask(one.painted, name=one.mask_name, limits=limits, brush=one.brush)
    if one.brush is not None and masks.is_empty(pixels):
        return None
    return masks.fitted(pixels, width, height, one.mask_name)


def _face_of(one: AskedSpeaker, found: FoundFaces, mask: np.ndarray | None, name: str) -> int:
    """The index of a speaker's face. Raises: BadInput."""
    if one.face or mask is None:
        return chosen(found, one.face, name)
    if not found.boxes:
        return chosen(found, "", name)  # which says that there is none
    return masks.face_within(mask, found.boxes, one.mask_name)


def _beside(mask: np.ndarray, box: FaceBox, number: int, name: str) -> list[Notice]:
    """That a mask leaves out its speaker's face, whose number this is: the voice moves something else."""
    if masks.share_within(mask, box) >= masks.BESIDE_FACE:
        return []
    text = f"The mask {name} does not cover face {number}: its voice will move what the mask covers."
    return [Notice("mask_beside_face", text, "warning", values={"name": name, "number": number})]


def _chooses_alone() -> Notice:
    text = "On the preview a mask only says which face speaks: each voice moves its own face alone."
    return Notice("mask_chooses", text)


def _spoken(asked: AskedSpeakers, one: AskedSpeaker) -> str:
    """A digest of what a speaker says and how, if that is a text; else ""."""
    if not (one.text or (asked.dialogue and one.label)):
        return ""
    label = one.label or str(asked.speakers.index(one) + 1)
    return sha256(f"{asked.digest} {label}".encode()).hexdigest()


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
