"""What lies beside a finished video: its thumbnail, its captions and its report."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from PIL import Image

from avatar.errors import AvatarError
from avatar.events import Finished
from avatar.geometry import FPS
from avatar.media import atomic, caption_files
from avatar.media.side_files import COMMENT, report_path, thumbnail_path
from avatar.request import Request
from avatar.runtime.fingerprint import origin
from avatar.runtime.report import ReportedSpeaker, RunReport

THUMBNAIL_PX = 480  # longest side


def new_report(request: Request, label: str) -> RunReport:
    """The report of a run that begins now. label: the engine's."""
    return RunReport(
        video=request.output.name,
        thumbnail=thumbnail_path(request.output).name,
        portrait=request.portrait_name,
        speech=request.speech_name,
        prompt=request.prompt,
        engine=label,
        preset=request.preset.as_dict(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        frames_asked=request.num_frames,
        fps=FPS,
        face_points=request.face_points,
        head_only=request.head_only,
        face=request.face,
        speakers=[
            ReportedSpeaker(one.name, one.face, one.mask, one.voice is not None, one.painted is not None)
            for one in request.speakers
        ],
        portrait_size=_size_of(request.portrait) if request.speakers else None,
        background=request.background,
        background_picture=request.background_name or None,
        pose=request.pose_name or None,
        made_from={} if request.part else origin(request),
    )


def _size_of(portrait: Path) -> tuple[int, int]:
    with Image.open(portrait) as picture:
        return picture.size


def settle_report(report: RunReport, request: Request) -> None:
    """Enter what was not known when the run began, if its speech was growing: its length and captions."""
    if request.growing is None:
        return
    report.frames_asked = request.num_frames
    report.made_from = {} if request.part else origin(request)


class Unreported(AvatarError):
    """The video is in its place, but its thumbnail or report cannot be written. finished: the video."""

    def __init__(self, message: str, remedy: str, finished: Finished) -> None:
        super().__init__(message, remedy)
        self.finished = finished
        self.args = (message, remedy, finished)  # what it is made from again after pickling


def publish(request: Request, report: RunReport, num_frames: int, error: str | None) -> Finished:
    """Put thumbnail, captions and report beside the video, the report last. Raises: Unreported."""
    report.num_frames, report.duration_s, report.error = num_frames, num_frames / report.fps, error
    path = report_path(request.output)
    finished = Finished(request.output, path, num_frames, report.duration_s, report.stopped, error)
    try:
        atomic.move(thumbnail(request), thumbnail_path(request.output))
        if request.captions and request.part is None:
            caption_files.write(request.output, request.captions, report.duration_s)
        report.write(path)
    except OSError as failed:
        raise unreported(failed, finished) from failed
    return finished


def unreported(error: OSError, finished: Finished) -> Unreported:
    """What a user reads when a thumbnail or report cannot be written."""
    reason = error.strerror or type(error).__name__
    message = f"The video is in its place; its report cannot be written ({reason})."
    return Unreported(message, "Nothing of the video is lost; free disk space.", finished)


def thumbnail(request: Request) -> Path:
    """Where the thumbnail waits until the video is published."""
    return request.work / "thumbnail.jpg"


def save_thumbnail(frame: np.ndarray, request: Request) -> None:
    """Keep a frame, uint8 (H, W, 3), small, until the video is published."""
    _save(Image.fromarray(frame), thumbnail(request))


def save_small(picture: Path, target: Path) -> None:
    """A thumbnail of a picture of ours, where there is no frame yet. Raises: OSError."""
    with Image.open(picture) as opened:
        _save(opened.convert("RGB"), target)


def _save(picture: Image.Image, target: Path) -> None:
    picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    picture.save(target, quality=85, comment=COMMENT)
