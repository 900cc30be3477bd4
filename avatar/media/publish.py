"""What lies beside a finished video: its thumbnail and its report."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from PIL import Image

from avatar.events import Finished
from avatar.media.origin import origin
from avatar.media.report import RunReport
from avatar.request import Request

THUMBNAIL_PX = 480  # longest side


def new_report(request: Request, label: str) -> RunReport:
    """The report of a run that begins now. label: the engine's."""
    return RunReport(
        video=request.output.name,
        thumbnail=request.output.with_suffix(".jpg").name,
        portrait=request.portrait_name,
        speech=request.speech_name,
        prompt=request.prompt,
        engine=label,
        preset=request.preset.as_dict(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        frames_asked=request.num_frames,
        fps=request.preset.generation.fps,
        face_points=request.face_points,
        head_only=request.head_only,
        made_from={} if request.part else origin(request),
    )


def publish(request: Request, report: RunReport, num_frames: int, error: str | None) -> Finished:
    """Put thumbnail and report beside the video, the report last."""
    report.num_frames, report.duration_s, report.error = num_frames, num_frames / report.fps, error
    shutil.move(thumbnail(request), request.output.with_suffix(".jpg"))
    path = request.output.with_suffix(".json")
    report.write(path)
    return Finished(request.output, path, num_frames, report.duration_s, report.stopped, error)


def thumbnail(request: Request) -> Path:
    """Where the thumbnail waits until the video is published."""
    return request.work / "thumbnail.jpg"


def save_thumbnail(frame: np.ndarray, request: Request) -> None:
    """Keep a frame, uint8 (H, W, 3), small, until the video is published."""
    picture = Image.fromarray(frame)
    picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    picture.save(thumbnail(request), quality=85)
