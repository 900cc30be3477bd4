"""A speaker as users write it: "face=2,audio=anna.wav" on the command line, a table in TOML and JSON."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avatar.errors import BadInput
from avatar.media.face_choice import face_words
from avatar.media.framing import parse_picture
from avatar.media.speaker_choice import HOW_TO_NAME, SOURCES, AskedSpeaker
from avatar.request import Box
from avatar.settings import SPEAKING, Picture, Speaking
from avatar.validation import made, nearest, shown

KEYS = ("face", "audio", "text", "voice", "speed", "label", "mask")
_SEPARATOR = re.compile(r"(,\s*(?=[a-z_]+\s*=))")
_BOX = re.compile(r"[-+0-9., ]*")  # otherwise a mask is the name of a picture
_ALLOWED = {name: one.setting.allowed for name, one in SPEAKING.items()}


def speaker_of_flag(text: str) -> AskedSpeaker:
    """A speaker as the command line has it: "face=2,audio=anna.wav". Raises: BadInput."""
    return speaker_of(speaker_words(text))


def speaker_words(text: str) -> dict[str, str]:
    """The keys and values of "face=2,audio=anna.wav". Raises: BadInput.

    A comma, a word and "=" begin the next key; within a text only where that word is a key.
    """
    given: dict[str, str] = {}
    last, separator = "", ""
    for number, part in enumerate(_SEPARATOR.split(text.strip())):
        if number % 2:
            separator = part
            continue
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if last == "text" and key not in KEYS:
            given[last] += separator + part
            continue
        if not equals:
            raise BadInput(f"speaker {shown(text)} is not understood.", HOW_TO_NAME)
        if key in given:
            raise BadInput(f"speaker {shown(text)} has two of {key}.", HOW_TO_NAME)
        given[key], last = value, key
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
    face, mask = face_words(given.get("face")), given.get("mask")
    if not face and mask is None:
        raise BadInput("A speaker has no face.", HOW_TO_NAME)
    for key in (*SOURCES, "voice"):
        if not isinstance(given.get(key, ""), str) or given.get(key) == "":
            raise BadInput(f"speaker: {key} is {shown(given[key])}.", f"Give {key} as text, or leave it out.")
    sources = [f"{SOURCES[key]} ({key})" for key in SOURCES if key in given]
    if len(sources) > 1:
        raise BadInput(
            f"The speaker of {f'face {face}' if face else 'a mask'} has {' and '.join(sources)}.",
            "Leave all but one of them out.",
        )
    picture: Picture = parse_picture("speaker: ", face=face)
    speaking = _speaking(given)
    is_painted = isinstance(mask, str) and not _BOX.fullmatch(mask)

    def placed(value: Any) -> Path | None:
        return None if value is None else Path(value) if folder is None else folder / value

    return AskedSpeaker(
        picture.face,
        placed(given.get("audio")),
        given.get("label", ""),
        None if mask is None or is_painted else mask_of(mask),
        painted=placed(mask) if is_painted else None,
        text=given.get("text", ""),
        voice=speaking.voice if "voice" in given else "",
        speed=speaking.speed if "speed" in given else None,
    )


def _speaking(given: Mapping[str, Any]) -> Speaking:
    """Voice and speed; flags have numbers as text. Raises: BadInput."""
    speed = given.get("speed")
    try:
        speed = float(speed) if isinstance(speed, int | str) and not isinstance(speed, bool) else speed
    except ValueError as error:
        raise BadInput(f"speaker: speed is {shown(speed)}.", f"It must be {_ALLOWED['speed']}.") from error
    return made(Speaking, _ALLOWED, "speaker: ", {"voice": given.get("voice"), "speed": speed})


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
        "It must be a picture that is white where the voice acts, or left,top,right,bottom, fractions of the"
        " portrait from 0 to 1, like 0,0,0.5,1.",
    )
