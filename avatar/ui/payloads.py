"""Check what a client sent as settings, points or a press: before that, it may be any JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from avatar.errors import BadInput
from avatar.media.speaker_choice import MOST_SPEAKERS, STEREO, AskedSpeaker
from avatar.media.speaker_words import speaker_of
from avatar.request import KEEP, PICTURE_FILE
from avatar.validation import shown


def pressed(event: gr.EventData) -> tuple[str, str]:
    """What was pressed in a panel: action and id; "" for anything but text."""
    data = mapping(event._data)
    id = data.get("id")
    return text_of(data.get("action")), str(id) if type(id) is int else text_of(id)


def mapping(value: Any) -> dict[str, Any]:
    """The value if it is an object, else an empty one; for values that the page itself keeps."""
    return dict(value) if isinstance(value, Mapping) else {}


def kept(saved: Any, owner: str, names: Sequence[str]) -> dict[str, Any]:
    """What a browser kept, in a form to send back: only our own keys, with values that JSON can hold.

    names: of settings.
    """
    saved = mapping(saved)
    settings = {name: value for name, value in mapping(saved.get("settings")).items() if name in names}
    return {
        "owner": owner,
        "preset": text_of(saved.get("preset")),
        "prompt": text_of(saved.get("prompt")),
        "settings": {name: value for name, value in settings.items() if _is_plain(value)},
    }


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | bool | float) or (isinstance(value, int) and abs(value) < 2**63)


def text_of(value: Any) -> str:
    """The value if it is text, else ""; for values that the page itself keeps."""
    return value if isinstance(value, str) else ""


def settings(value: Any) -> dict[str, Any]:
    """Settings by name. Raises: BadInput."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise BadInput("The settings are not a JSON object.", 'Give them by name, for example {"seed": 7}.')
    return dict(value)


def face_points(value: Any) -> dict[str, Any] | None:
    """Points by name, which intake checks; None if there are none. Raises: BadInput."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise BadInput(
            "The face points are not a JSON object.", 'Give them by name, for example {"chin": [0.5, 0.9]}.'
        )
    return dict(value) or None


def background(word: Any, picture: Any) -> dict[str, Any]:
    """What parse_picture takes for a background: a word or a colour, or an uploaded picture's path.

    picture: checked to be an upload. Raises: BadInput.
    """
    if picture is None and word != PICTURE_FILE:
        return {"background": word}
    if not isinstance(picture, str) or not picture:
        raise BadInput("There is no picture for the background.", "Upload one, or choose another background.")
    if word not in (None, "", KEEP, PICTURE_FILE):
        raise BadInput("Both a background and a picture for it were given.", "Give only one of them.")
    return {"background": picture, "files": True}


def speakers(value: Any, find: Callable[[object], Path]) -> list[AskedSpeaker]:
    """Speakers as a list of objects, whose recordings are uploads. find: the file of an uploaded path.

    Raises: BadInput, NotUploaded.
    """
    if value is None or value == {}:
        return []
    if not isinstance(value, list) or not all(isinstance(one, Mapping) for one in value):
        raise BadInput(
            "The speakers are not a JSON list of objects.",
            'Give each a face and a recording: [{"face": 1, "audio": handle_file("anna.wav")}, …].',
        )
    found = []
    for one in value:
        audio = one.get("audio")
        path = None if audio is None else find(mapping(audio).get("path"))
        others = {str(key): part for key, part in one.items() if key != "audio"}
        found.append(speaker_of({**others, **({} if path is None else {"audio": str(path)})}))
    return found


def num_speakers(value: Any) -> int:
    """How many faces have a voice of their own; None for one. Raises: BadInput."""
    count = 1 if value is None else value
    if type(count) is not int or not 1 <= count <= MOST_SPEAKERS:
        raise BadInput(
            f"num_speakers is {shown(value)}.", f"It must be a whole number from 1 to {MOST_SPEAKERS}."
        )
    return count


def split(word: Any, turns: Any) -> str | None:
    """How one recording is split: STEREO, or the path of an uploaded list of turns; None where it is not.

    turns: checked to be an upload. Raises: BadInput.
    """
    if word not in (None, "", STEREO):
        raise BadInput(f"split is {shown(word)}.", "Give stereo, or upload a list of turns as turns.")
    if turns and word:
        raise BadInput("Both split and turns were given.", "Give only one of them.")
    return turns or word or None


def truth(value: Any, name: str) -> bool:
    """True or false, None for false. Raises: BadInput."""
    if value is not None and not isinstance(value, bool):
        raise BadInput(f"{name} is neither true nor false.", f"Give {name} as one of the two.")
    return bool(value)
