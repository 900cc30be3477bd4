"""A half-made video in one folder: request, portrait, speech and, of a long one, parts. It needs no more."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from avatar.errors import BadInput
from avatar.geometry import FPS
from avatar.long.ledger import PLAN, Ledger
from avatar.long.splitting import regular_spans
from avatar.media import atomic
from avatar.preset import Preset
from avatar.request import PICTURE_FILE, Caption, Request, Speaker
from avatar.runtime.gallery_entry import PORTRAIT

PARTS = "parts"  # the ledger's folder
_REQUEST, _PORTRAIT, _SPEECH = "request.json", PORTRAIT, "speech.wav"
_BACKGROUND = "background.png"
_VOICE = "voice-{}.wav"  # of several speakers, by number
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
    "other_faces",
)


def keep(folder: Path, request: Request) -> Request:
    """Keep a request in a new folder; returns it as it is kept. Raises: AvatarError when the disk is full."""
    try:
        folder.mkdir()
        kept = replace(request, portrait=folder / _PORTRAIT, speech=folder / _SPEECH)
        _copy(request.portrait, kept.portrait)
        _copy(request.speech, kept.speech)
        voices = [folder / _VOICE.format(number) for number in range(1, len(request.voices) + 1)]
        kept = kept.with_voices(voices)
        for voice, place in zip(request.voices, voices, strict=True):
            _copy(voice, place)
        if request.background_picture is not None:
            kept = replace(kept, background_picture=folder / _BACKGROUND)
            _copy(request.background_picture, folder / _BACKGROUND)
        data = {"preset": request.preset.as_dict(), **{name: getattr(request, name) for name in _PLAIN}}
        data["captions"] = [asdict(one) for one in request.captions]
        data["speakers"] = [{**asdict(one), "voice": one.voice and one.voice.name} for one in kept.speakers]
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
        data["speakers"] = tuple(_speaker(one, folder) for one in data.get("speakers", []))
        data["other_faces"] = tuple(tuple(box) for box in data.get("other_faces", []))
        background = folder / _BACKGROUND if data.get("background") == PICTURE_FILE else None
        request = Request(
            background_picture=background,
            portrait=folder / _PORTRAIT,
            speech=folder / _SPEECH,
            work=work,
            output=output,
            preset=Preset.from_dict(data.pop("preset")),
            **data,
        )
        files = (request.portrait, request.speech, background, *request.voices)
        if not all(path.is_file() for path in files if path):
            raise FileNotFoundError(folder.name)
        begun = (folder / PARTS / PLAN).is_file()
        return request, Ledger.resume(folder / PARTS, request) if begun else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(
            "This unfinished video is damaged: it cannot be resumed.", "Delete it and make it anew."
        ) from error


def _speaker(data: dict[str, Any], folder: Path) -> Speaker:
    """A speaker as keep has written it. Raises: ValueError, KeyError, TypeError."""
    voice, mask = data["voice"], data["mask"]
    if voice is not None and Path(voice).name != voice:
        raise ValueError("a voice is kept in the folder")
    return Speaker(
        face=tuple(data["face"]),
        name=data["name"],
        voice=None if voice is None else folder / voice,
        mask=None if mask is None else tuple(mask),
    )


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
