"""Fingerprints of a video's inputs: an unfinished video is only continued from the same ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from avatar.checkpoints.lora_files import loras_digest
from avatar.errors import BadInput
from avatar.request import KEEP, Request

_WORDS = {
    "portrait": "the portrait is another",
    "speech": "the speech is another",
    "preset": "the preset or its settings are others",
    "prompt": "the prompt is another",
    "lora": "the LoRAs are others",
    "face": "the face, its points or head_only are others",
    "captions": "the captions that are burned in are others",
    "background": "the background is another",
    "speakers": "the speakers, their faces or their recordings are others",
    "pose": "the pose video is another",
}
# Settings that came later: by section, with the value that older versions meant.
_LATER = (("generation", "motion", "normal"), ("generation", "upscale", "off"), ("memory", "decoder", "full"))
_SHAPING = ("engine", "generation", "memory", "parallel")  # sections of a preset that affect a video


def origin(request: Request) -> dict[str, str]:
    """A fingerprint of each input of a video."""
    preset = request.preset.as_dict()
    burned = [asdict(one) for one in request.captions] if request.burn_captions else []
    lora = preset["memory"].pop("lora")  # the files' content counts, not their names
    for section, name, usual in _LATER:
        if preset[section][name] == usual:
            del preset[section][name]  # as in older versions, which had no other
    return {
        "portrait": file_digest(request.portrait),
        "speech": request.spoken or file_digest(request.speech),  # voices may vary in speaking a text
        "preset": _digest({key: preset[key] for key in _SHAPING}),
        "prompt": _digest(request.prompt),
        "face": _digest([request.face_points, request.head_only, *(request.face or ())]),
        **_background(request),
        **_speakers(request),
        **({"pose": file_digest(request.pose)} if request.pose else {}),
        **({"captions": _digest(burned)} if burned else {}),
        **({"lora": loras_digest(lora)} if lora else {}),  # left out without LoRAs, as in older versions
    }


def _background(request: Request) -> dict[str, str]:
    """Left out where the portrait's own is kept, as in older versions."""
    if request.background == KEEP:
        return {}
    picture = request.background_picture
    return {"background": _digest([request.background, picture and file_digest(picture)])}


def _speakers(request: Request) -> dict[str, str]:
    """Left out for a single speaker, as in older versions."""
    if not request.speakers:
        return {}
    said = [
        (
            one.face,
            hashlib.sha256(one.painted).hexdigest() if one.painted else one.mask,
            one.spoken or (one.voice and file_digest(one.voice)),
        )
        for one in request.speakers
    ]
    return {"speakers": _digest([said, request.other_faces])}


def run_name(made_from: Mapping[str, str], spans: Any) -> str:
    """The short name shared by all parts of one run."""
    return _digest([dict(made_from), spans])[:16]


def check_same(begun: Mapping[str, str], now: Mapping[str, str], name: str) -> None:
    """Raises: BadInput naming the inputs that have changed since the video was begun."""
    changed = [words for key, words in _WORDS.items() if begun.get(key) != now.get(key)]
    if changed:
        raise BadInput(
            f"{name} was begun with different inputs: {', and '.join(changed)}.",
            "Give what it was begun with to resume it; or delete its .parts folder to start over.",
        )


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in constant memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
