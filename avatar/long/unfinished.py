"""A half-made video in one folder: request, portrait, speech and, of a long one, parts. It needs no more."""

from __future__ import annotations

import json
import os
import shutil
from base64 import b64decode, b64encode
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from avatar.errors import BadInput
from avatar.geometry import FPS
from avatar.long.ledger import PLAN, Ledger
from avatar.long.splitting import regular_spans
from avatar.media import atomic
from avatar.media.growing import GrowingRecording
from avatar.preset import Preset
from avatar.request import PICTURE_FILE, Caption, Request, Speaker
from avatar.runtime.gallery_entry import PORTRAIT
from avatar.speech.catalogue import speaking
from avatar.speech.narration import Script

PARTS = "parts"  # the ledger's folder
_REQUEST, _PORTRAIT, _SPEECH = "request.json", PORTRAIT, "speech.wav"
_BACKGROUND, _POSE = "background.png", "pose.mkv"
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
    "background_name",
    "pose_name",
)


def keep(folder: Path, request: Request, script: Script | None = None) -> Request:
    """Keep a request in a new folder; returns it as it is kept. Raises: AvatarError when the disk is full.

    script: the text, if its speech is still growing, which stays where it is: resumed before complete() was
    called, the video is of the text spoken once more.
    """
    try:
        folder.mkdir()
        kept = replace(request, portrait=folder / _PORTRAIT)
        _copy(request.portrait, kept.portrait)
        if script is None:
            kept = replace(kept, speech=folder / _SPEECH)
            _copy(request.speech, kept.speech)
        voices = [folder / _VOICE.format(number) for number in range(1, len(request.voices) + 1)]
        kept = kept.with_voices(voices)
        for voice, place in zip(request.voices, voices, strict=True):
            _copy(voice, place)
        if request.background_picture is not None:
            kept = replace(kept, background_picture=folder / _BACKGROUND)
            _copy(request.background_picture, folder / _BACKGROUND)
        if request.pose is not None:
            kept = replace(kept, pose=folder / _POSE)
            _copy(request.pose, folder / _POSE)
        data = {"preset": request.preset.as_dict(), **{name: getattr(request, name) for name in _PLAIN}}
        data["captions"] = [asdict(one) for one in request.captions]
        data["speakers"] = [_plain(one) for one in kept.speakers]
        data |= {} if script is None else {"script": asdict(script)}
        atomic.write(folder / _REQUEST, json.dumps(data).encode())
    except OSError as error:
        raise atomic.disk_error(error) from error
    return kept


def complete(folder: Path, speech: Path, journal: Path) -> None:
    """Keep the speech that was growing when its request was kept, now complete. Raises: OSError."""
    growth = GrowingRecording(journal).look()
    data = json.loads((folder / _REQUEST).read_text(encoding="utf-8"))
    data |= {"num_frames": growth.num_frames, "captions": [asdict(one) for one in growth.captions]}
    data.pop("script", None)
    atomic.copy(speech, folder / _SPEECH)
    atomic.write(folder / _REQUEST, json.dumps(data).encode())


def script_of(folder: Path) -> Script | None:
    """The text that is to be spoken once more before a video is resumed; None where its speech is kept."""
    try:
        kept = json.loads((folder / _REQUEST).read_text(encoding="utf-8")).get("script")
        return None if kept is None else Script(kept["text"], speaking(**kept["speaking"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged() from error


def begin_parts(folder: Path, kept: Request) -> Ledger:
    """Plan the parts of a long video whose request a folder keeps. Raises: AvatarError."""
    spans = regular_spans(kept.num_frames, kept.preset, _every(kept.preset))
    try:
        return Ledger.begin(folder / PARTS, kept, spans)
    except OSError as error:
        raise atomic.disk_error(error) from error


def resume(
    folder: Path, *, work: Path, output: Path, growing: Path | None = None, most: int = 0
) -> tuple[Request, Ledger | None]:
    """The request that a folder keeps, and what is done of it; None where it was not begun in parts.

    growing, most: the journal of its text spoken once more, and its most frames. Raises: BadInput when it is
    damaged.
    """
    try:
        data = json.loads((folder / _REQUEST).read_text(encoding="utf-8"))
        if data.pop("script", None) is not None and growing is not None:
            data |= {"growing": growing, "num_frames": most}
        points = data["face_points"]
        data["face_points"] = points and {name: tuple(point) for name, point in points.items()}
        data["face"] = tuple(data["face"]) if data.get("face") else None
        data["captions"] = tuple(Caption(**one) for one in data.get("captions", []))
        data["speakers"] = tuple(_speaker(one, folder) for one in data.get("speakers", []))
        data["other_faces"] = tuple(tuple(box) for box in data.get("other_faces", []))
        background = folder / _BACKGROUND if data.get("background") == PICTURE_FILE else None
        pose = folder / _POSE if data.get("pose_name") else None
        request = Request(
            background_picture=background,
            pose=pose,
            portrait=folder / _PORTRAIT,
            speech=folder / _SPEECH if growing is None else growing.with_suffix(".wav"),
            work=work,
            output=output,
            preset=Preset.from_dict(data.pop("preset")),
            **data,
        )
        files = (request.portrait, request.speech, background, pose, *request.voices)
        if not all(path.is_file() for path in files if path):
            raise FileNotFoundError(folder.name)
        begun = (folder / PARTS / PLAN).is_file()
        return request, Ledger.resume(folder / PARTS, request) if begun else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged() from error


def _damaged() -> BadInput:
    return BadInput("This unfinished video is damaged: it cannot be resumed.", "Delete it and make it anew.")


def _plain(speaker: Speaker) -> dict[str, Any]:
    """A speaker for JSON; _speaker reads it."""
    painted = None if speaker.painted is None else b64encode(speaker.painted).decode()
    return {**asdict(speaker), "voice": speaker.voice and speaker.voice.name, "painted": painted}


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
        spoken=data.get("spoken", ""),
        painted=b64decode(data["painted"], validate=True) if data.get("painted") else None,
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
