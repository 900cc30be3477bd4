"""The run report that lies beside every finished video."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class RunReport:
    """How a video came about; written as NAME.json beside NAME.mp4, with the thumbnail NAME.jpg."""

    video: str  # file names only
    thumbnail: str
    portrait: str
    speech: str
    prompt: str
    engine: str  # the source's label
    preset: dict[str, Any]
    created: str  # ISO 8601, UTC
    num_frames: int = 0
    frames_asked: int = 0
    fps: int = 25
    width: int = 0
    height: int = 0
    duration_s: float = 0.0
    elapsed_s: float = 0.0
    first_frame_s: float | None = None
    first_segment_s: float | None = None
    frames_per_s: float | None = None
    stopped: bool = False
    error: str | None = None
    notices: list[dict[str, Any]] = field(default_factory=list)
    rungs: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write as JSON, whole or not at all."""
        raise NotImplementedError


def read_report(path: Path) -> RunReport:
    """Raises: BadInput when the file is none."""
    raise NotImplementedError
