"""Files beside a video, their names, and the mark by which this project recognises its own files.

No input has such a name, and a file without the mark is never replaced.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
from PIL import Image

from avatar.errors import BadInput
from avatar.media.files import display_name

MADE_BY = "Live Avatar"
MARK = {"made_by": MADE_BY}  # in a video's comment, and in every JSON file
COMMENT = f"Made by {MADE_BY}"  # of a thumbnail
REPORT, THUMBNAIL = ".report.json", ".thumb.jpg"
SRT, VTT = ".srt", ".vtt"  # captions
NOTE = f"NOTE Made by {MADE_BY}"  # in a .vtt; a .srt cannot have a mark and shares that of the .vtt beside it
_OLD = {REPORT: ".json", THUMBNAIL: ".jpg"}  # their suffixes in earlier versions
_LARGEST_JSON_BYTES = 64 * 2**20
_OTHER = "It is left as it is: choose another name for the output."


def report_path(video: Path) -> Path:
    """Where a video's report is written."""
    return video.with_suffix(REPORT)


def thumbnail_path(video: Path) -> Path:
    """Where a video's thumbnail is written."""
    return video.with_suffix(THUMBNAIL)


def captions_paths(video: Path) -> tuple[Path, Path]:
    """Where a video's captions are written: .srt and .vtt."""
    return video.with_suffix(SRT), video.with_suffix(VTT)


def written_report(video: Path) -> Path:
    """The path to read a video's report from; an earlier version's name is used if only that exists."""
    return _written(video, REPORT)


def written_thumbnail(video: Path) -> Path:
    """The path to read a video's thumbnail from; see written_report."""
    return _written(video, THUMBNAIL)


def made_here(path: Path) -> bool:
    """Whether a video, thumbnail, captions or JSON file carries this project's mark."""
    if not path.is_file():
        return False
    match path.suffix.lower():
        case ".mp4" | ".webm" | ".mov":
            return _is_marked_video(path)
        case ".jpg":
            return _is_marked_picture(path)
        case ".json":
            return is_marked(_read_json(path))
        case ".srt" | ".vtt":
            return _is_marked_caption(path.with_suffix(VTT))
    return False


def is_marked(data: Any) -> bool:
    """Whether a JSON file's content is ours; reports of earlier versions are recognised by their keys."""
    return isinstance(data, dict) and (
        data.get("made_by") == MADE_BY or {"video", "frames_asked", "preset", "made_from"} <= data.keys()
    )


def is_output(path: Path) -> bool:
    """Whether a file is the result of an earlier run, not an input."""
    name = path.name.lower()
    return name.endswith((".mp4", ".webm", ".mov", THUMBNAIL)) and made_here(path)


def check_free(path: Path) -> None:
    """Refuse a path where a file exists that is not ours; an empty file may be replaced. Raises: BadInput."""
    try:
        empty = path.is_file() and path.stat().st_size == 0
        taken = path.is_symlink() or path.exists()
        if not taken or empty or made_here(path):
            return
    except OSError as error:
        raise BadInput(
            f"{display_name(path)} cannot be checked in its output folder ({error.strerror}).", _OTHER
        ) from error
    raise BadInput(f"{display_name(path)} is there already, and was not made by {MADE_BY}.", _OTHER)


def check_places(video: Path, captions: bool = False, others: tuple[Path, ...] = ()) -> None:
    """check_free for a video and its side files. captions: whether there will be any. others: as well."""
    beside = (report_path(video), thumbnail_path(video), *(captions_paths(video) if captions else ()))
    for path in (video, *beside, *others):
        check_free(path)


def _written(video: Path, suffix: str) -> Path:
    path, old = video.with_suffix(suffix), video.with_suffix(_OLD[suffix])
    return old if not path.exists() and _made_before(old) else path


def _made_before(path: Path) -> bool:
    """Whether a file of an earlier version is there; those versions' thumbnails have no mark."""
    return path.is_file() and (path.suffix != ".json" or is_marked(_read_json(path)))


def _is_marked_video(path: Path) -> bool:
    try:
        # Named, so that no other demuxer, such as one of playlists, is tried on a file that is not ours.
        kind = "webm" if path.suffix.lower() == ".webm" else "mp4"
        with av.open(str(path), format=kind) as container:
            mark = json.loads(container.metadata["COMMENT" if kind == "webm" else "comment"])
    except (av.FFmpegError, OSError, KeyError, ValueError):
        return False
    is_part = isinstance(mark, dict) and {"run", "first_frame"} <= mark.keys()  # in earlier versions too
    return is_part or is_marked(mark)


def _is_marked_picture(path: Path) -> bool:
    try:
        with Image.open(path, formats=("JPEG",)) as picture:
            return bool(picture.info.get("comment") == COMMENT.encode())
    except (OSError, ValueError, Image.DecompressionBombError):
        return False


def _is_marked_caption(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8") as file:
            return NOTE in file.read(200).splitlines()
    except (OSError, ValueError):
        return False


def _read_json(path: Path) -> Any:
    try:
        if path.stat().st_size > _LARGEST_JSON_BYTES:
            return None
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
