"""A half-made video in one folder: request, portrait, speech and parts. It needs nothing else to go on."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path

from avatar.errors import BadInput
from avatar.geometry import FPS
from avatar.long.ledger import Ledger
from avatar.long.spans import regular_spans
from avatar.media import atomic
from avatar.preset import Preset
from avatar.request import Caption, Request

PARTS = "parts"  # the ledger's folder
_REQUEST, _PORTRAIT, _SPEECH = "request.json", "portrait.png", "speech.wav"
_PART_S = 30.0  # about so long is a part
_PLAIN = (
    "num_frames",
    "portrait_name",
    "speech_name",
    "prompt",
    "face_points",
    "head_only",
    "face",
    "segment_s",
    "burn_captions",
    "spoken",
)


def begin(folder: Path, request: Request) -> tuple[Request, Ledger]:
    """Keep a request in a new folder, and plan its parts; returns it as it is kept.

    Raises: AvatarError when the disk is full.
    """
    try:
        folder.mkdir()
        kept = replace(request, portrait=folder / _PORTRAIT, speech=folder / _SPEECH)
        _copy(request.portrait, kept.portrait)
        _copy(request.speech, kept.speech)
        data = {"preset": request.preset.as_dict(), **{name: getattr(request, name) for name in _PLAIN}}
        data["captions"] = [asdict(one) for one in request.captions]
        atomic.write(folder / _REQUEST, json.dumps(data).encode())
        spans = regular_spans(request.num_frames, request.preset, _every(request.preset))
        return kept, Ledger.begin(folder / PARTS, kept, spans)
    except OSError as error:
        raise atomic.disk_error(error) from error


def resume(folder: Path, *, work: Path, output: Path) -> tuple[Request, Ledger]:
    """The request that a folder keeps, and what is done of it. Raises: BadInput when it is damaged."""
    try:
        data = json.loads((folder / _REQUEST).read_text(encoding="utf-8"))
        points = data["face_points"]
        data["face_points"] = points and {name: tuple(point) for name, point in points.items()}
        data["face"] = tuple(data["face"]) if data.get("face") else None
        data["captions"] = tuple(Caption(**one) for one in data.get("captions", []))
        request = Request(
            portrait=folder / _PORTRAIT,
            speech=folder / _SPEECH,
            work=work,
            output=output,
            preset=Preset.from_dict(data.pop("preset")),
            **data,
        )
        return request, Ledger.resume(folder / PARTS, request)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(
            "This unfinished video is damaged: it cannot be resumed.", "Delete it and make it anew."
        ) from error


def _every(preset: Preset) -> int:
    """Seconds of the preview, or clips, in a part."""
    if preset.engine == "preview":
        return round(_PART_S)
    return max(1, round(_PART_S * FPS / preset.generation.infer_frames))


def _copy(source: Path, target: Path) -> None:
    """A second name for a file, or a copy where it lies on another disk."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    atomic.sync(target)
