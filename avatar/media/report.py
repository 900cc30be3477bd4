"""The run report that lies beside every finished video."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from avatar.errors import BadInput
from avatar.media import durable

_PACKAGES = ("av", "numpy", "pillow", "soxr", "onnxruntime", "torch", "diffusers", "transformers", "gradio")


@dataclass
class RunReport:
    """How a video came about; NAME.json beside NAME.mp4 and its thumbnail NAME.jpg.

    video, thumbnail, portrait, speech: file names, no folders. engine: the source's label.
    created: ISO 8601, UTC. first_frame_s, first_segment_s: seconds since the run began.
    frames_per_s: frames made a second since the first one was asked for. made_from: see origin; {} for parts.
    """

    video: str
    thumbnail: str
    portrait: str
    speech: str
    prompt: str
    engine: str
    preset: dict[str, Any]
    created: str
    frames_asked: int
    fps: int
    face_points: dict[str, tuple[float, float]] | None = None
    head_only: bool = False
    num_frames: int = 0
    width: int = 0
    height: int = 0
    duration_s: float = 0.0
    elapsed_s: float = 0.0
    first_frame_s: float | None = None
    first_segment_s: float | None = None
    frames_per_s: float | None = None
    stopped: bool = False
    error: str | None = None
    made_from: dict[str, str] = field(default_factory=dict)
    notices: list[dict[str, Any]] = field(default_factory=list)
    rungs: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=lambda: installed_versions())

    def write(self, path: Path) -> None:
        """Write as JSON, whole or not at all."""
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"
        durable.write(path, text.encode())


def read_report(path: Path) -> RunReport:
    """Read what write wrote; keys that are not known are left out. Raises: BadInput for anything else."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        known = {f.name for f in fields(RunReport)}
        return RunReport(**{key: value for key, value in data.items() if key in known})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise BadInput(f"{path.name} is no run report.", "Delete it, or restore the file.") from error


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the packages that shape a result, those that are installed."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue  # not every engine needs every package
    return found
