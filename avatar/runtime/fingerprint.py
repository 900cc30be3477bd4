"""What a video is made from, as fingerprints: an unfinished one is gone on with only from the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from avatar.errors import BadInput
from avatar.planning.loras import loras_digest
from avatar.request import Request

_WORDS = {
    "portrait": "the portrait is another",
    "speech": "the speech is another",
    "preset": "the preset or its settings are others",
    "prompt": "the prompt is another",
    "lora": "the LoRAs are others",
    "face": "the face, its points or head_only are others",
    "captions": "the captions that are burned in are others",
}
_SHAPING = ("engine", "generation", "memory", "parallel")  # sections of a preset that shape a video


def origin(request: Request) -> dict[str, str]:
    """A fingerprint of each thing that a video is made from."""
    preset = request.preset.as_dict()
    burned = [asdict(one) for one in request.captions] if request.burn_captions else []
    lora = preset["memory"].pop("lora")  # what is in the files counts, not their names
    return {
        "portrait": file_digest(request.portrait),
        "speech": request.spoken or file_digest(request.speech),  # no voice need say a text twice alike
        "preset": _digest({key: preset[key] for key in _SHAPING}),
        "prompt": _digest(request.prompt),
        "face": _digest([request.face_points, request.head_only, *(request.face or ())]),
        **({"captions": _digest(burned)} if burned else {}),
        **({"lora": loras_digest(lora)} if lora else {}),  # none: as before there were any
    }


def run_name(made_from: Mapping[str, str], spans: Any) -> str:
    """The short name that all parts of one run share."""
    return _digest([dict(made_from), spans])[:16]


def check_same(begun: Mapping[str, str], now: Mapping[str, str], name: str) -> None:
    """Raises: BadInput naming what is not as it was when the video was begun."""
    changed = [words for key, words in _WORDS.items() if begun.get(key) != now.get(key)]
    if changed:
        raise BadInput(
            f"{name} was begun with something else: {', and '.join(changed)}.",
            "Give what it was begun with to resume it; or delete its .parts folder to begin anew.",
        )


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in memory that does not grow with it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
