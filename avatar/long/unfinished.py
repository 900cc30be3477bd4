"""A half-made video in one folder: request, portrait, speech and, of a long one, parts. It needs no more."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path

from avatar.errors import BadInput
from avatar.geometry import FPS
from avatar.long.ledger import PLAN, Ledger
from avatar.long.splitting import regular_spans
from avatar.media import atomic
from avatar.preset import Preset
from avatar.request import PICTURE_FILE, Caption, Request
from avatar.runtime.gallery_entry import PORTRAIT

PARTS = "parts"  # the ledger's folder
_REQUEST, _PORTRAIT, _SPEECH = "request.json", PORTRAIT, "speech.wav"
_BACKGROUND, _POSE = "background.png", "pose.mkv"
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
    "background",
    "background_name",
    "pose_name",
)


def keep(folder: Path, request: Request) -> Request:
    """Keep a request in a new folder; returns it as it is kept. Raises: AvatarError when the disk is full."""
    try:
        folder.mkdir()
        kept = replace(request, portrait=folder / _PORTRAIT, speech=folder / _SPEECH)
        _copy(request.portrait, kept.portrait)
        _copy(request.speech, kept.speech)
        if request.background_picture is not None:
            kept = replace(kept, background_picture=folder / _BACKGROUND)
            _copy(request.background_picture, folder / _BACKGROUND)
        if request.pose is not None:
            kept = replace(kept, pose=folder / _POSE)
            _copy(request.pose, folder / _POSE)
        data = {"preset": request.preset.as_dict(), **{name: getattr(request, name) for name in _PLAIN}}
        data["captions"] = [asdict(one) for one in request.captions]
        atomic.write(folder / _REQUEST, json.dumps(data).encode())
    except OSError as error:
        raise atomic.disk_error(error) from error
    return kept


def begin_parts(folder: Path, kept: Request) -> Ledger:
    """Plan the parts of a long video whose request a folder keeps. Raises: AvatarError."""
    spans = regular_spans(kept.num_frames, kept.preset, _every(kept.preset))
    try:
        return Ledger.begin(folder / PARTS, kept, spans)
    except OSError as error:
        raise atomic.disk_error(error) from error


def resume(folder: Path, *, work: Path, output: Path) -> tuple[Request, Ledger | None]:
    """The request that a folder keeps, and what is done of it; None where it was not begun in parts.

    Raises: BadInput when it is damaged.
    """
    try:
        data = json.loads((folder / _REQUEST).read_text(encoding="utf-8"))
        points = data["face_points"]
        data["face_points"] = points and {name: tuple(point) for name, point in points.items()}
        data["face"] = tuple(data["face"]) if data.get("face") else None
        data["captions"] = tuple(Caption(**one) for one in data.get("captions", []))
        background = folder / _BACKGROUND if data.get("background") == PICTURE_FILE else None
        pose = folder / _POSE if data.get("pose_name") else None
        request = Request(
            background_picture=background,
            pose=pose,
            portrait=folder / _PORTRAIT,
            speech=folder / _SPEECH,
            work=work,
            output=output,
            preset=Preset.from_dict(data.pop("preset")),
            **data,
        )
        if not all(path.is_file() for path in (request.portrait, request.speech, background, pose) if path):
            raise FileNotFoundError(folder.name)
        begun = (folder / PARTS / PLAN).is_file()
        return request, Ledger.resume(folder / PARTS, request) if begun else None
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
