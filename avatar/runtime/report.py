"""The run report beside every finished video: how it was made, and with which resources."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from avatar.errors import BadInput
from avatar.media import atomic
from avatar.media.side_files import MARK
from avatar.preset import Preset
from avatar.request import KEEP

_PACKAGES = ("av", "numpy", "pillow", "soxr", "onnxruntime", "torch", "diffusers", "transformers", "gradio")


RUNG_PLANNED = "rung_planned"  # code of a Notice: a rung taken before loading, because the plan did not fit
RUNG_OOM = "rung_oom"  # code of a Notice: a rung taken because a GPU ran out of memory


@dataclass(frozen=True)
class GpuUse:
    """A run's peak memory on one GPU; None if the driver does not report it. index: NVML's number.

    peak_bytes: in use by the engine's processes. card_peak_bytes: by all processes, without the driver's own.
    planned_bytes: the plan's peak, filled in by RunReport.gpus.
    """

    index: int
    name: str | None
    peak_bytes: int | None
    card_peak_bytes: int | None
    total_bytes: int | None
    planned_bytes: int | None = None


@dataclass(frozen=True)
class MemoryUse:
    """A run's peak memory, sampled twice a second. gpus: those that it used, or may have used.

    host_peak_bytes: resident memory of the engine's processes. pinned_peak_bytes: page-locked, for copies to
    and from a GPU; None if the engine does not report it.
    """

    gpus: tuple[GpuUse, ...] = ()
    host_peak_bytes: int | None = None
    pinned_bytes: int | None = None  # at the last sample
    pinned_peak_bytes: int | None = None


@dataclass(frozen=True)
class RungTaken:
    """A rung that a run took. code: RUNG_PLANNED or RUNG_OOM. frame: number of frames made by then."""

    rung: str
    code: str = ""
    why: str = ""
    frame: int | None = None
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ReportedSpeaker:
    """One of several faces that spoke. name: of the recording, or of the voice in one that was split.

    face, mask: see request.Speaker. speaks: False for one that only listened. painted: whether its mask was.
    """

    name: str
    face: tuple[float, float, float, float]
    mask: tuple[float, float, float, float] | None = None
    speaks: bool = True
    painted: bool = False


@dataclass(frozen=True)
class Upscaled:
    """How a finished video was enlarged. by: lanczos, arnet or command. width, height: before that."""

    by: str
    width: int
    height: int
    took_s: float


@dataclass
class RunReport:
    """How a video was made; NAME.report.json beside NAME.mp4 and its thumbnail NAME.thumb.jpg.

    video, thumbnail, portrait, speech, background_picture, pose: file names without folders. engine: the
    source's label. created: ISO 8601, UTC. first_frame_s, first_segment_s: seconds since the run began.
    activities_s: seconds before the first frame, by what the engine did (Activity, or the phase).
    speakers: where several faces spoke; then portrait_size: width and height of the framed portrait, in which
    their boxes are.
    frames_per_s: frames per second since the first one was requested. made_from: see origin; {} for parts.
    error_kind: the class of the error. plan: the plan at the start of the run (Plan.as_dict). memory:
    measured peaks. None means not measured.
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
    face: tuple[float, float, float, float] | None = None
    speakers: list[ReportedSpeaker] = field(default_factory=list)
    portrait_size: tuple[int, int] | None = None
    background: str = KEEP
    background_picture: str | None = None
    pose: str | None = None
    num_frames: int = 0
    width: int = 0
    height: int = 0
    duration_s: float = 0.0
    elapsed_s: float = 0.0
    first_frame_s: float | None = None
    first_segment_s: float | None = None
    activities_s: dict[str, float] = field(default_factory=dict)
    frames_per_s: float | None = None
    stopped: bool = False
    error: str | None = None
    error_kind: str | None = None
    upscaled: Upscaled | None = None
    made_from: dict[str, str] = field(default_factory=dict)
    notices: list[dict[str, Any]] = field(default_factory=list)
    rungs: list[RungTaken] = field(default_factory=list)
    plan: dict[str, Any] | None = None
    memory: MemoryUse | None = None
    versions: dict[str, str] = field(default_factory=lambda: installed_versions())

    @property
    def out_of_memory(self) -> bool | None:
        """Whether a GPU ran out of memory during the run; None: the run was lost, possibly because of it."""
        if any(taken.code == RUNG_OOM for taken in self.rungs) or self.error_kind == "DoesNotFit":
            return True
        return None if self.error is not None and self.error_kind in (None, "WorkerLost") else False

    @property
    def gpus(self) -> list[GpuUse]:
        """GPUs of the plan or the run, by index; without a plan, also those that the run may have used."""
        planned = {gpu["index"]: gpu for gpu in _planned_gpus(self)}
        used = {gpu.index: gpu for gpu in (self.memory.gpus if self.memory else ())}
        found = []
        for index in sorted(planned | used):
            plan = planned.get(index)
            gpu = used.get(index) or GpuUse(index, None, None, None, plan["total_bytes"] if plan else None)
            if plan is not None or gpu.peak_bytes or (self.plan is None and gpu.peak_bytes is None):
                found.append(replace(gpu, planned_bytes=plan["peak_bytes"] if plan else None))
        return found

    @property
    def host_planned_bytes(self) -> int | None:
        return None if self.plan is None else self.plan["host"]["peak_bytes"]

    def write(self, path: Path) -> None:
        """Write as JSON, atomically."""
        text = json.dumps(MARK | asdict(self), indent=2, ensure_ascii=False) + "\n"
        # File names that are not valid Unicode contain lone surrogates, which JSON can only hold escaped.
        atomic.write(path, text.encode(errors="backslashreplace"))


def read_report(path: Path) -> RunReport:
    """Read a report that write() wrote, ignoring unknown keys. Raises: BadInput for anything else."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        known = {f.name for f in fields(RunReport)}
        report = RunReport(**{key: value for key, value in data.items() if key in known})
        # Reports of earlier versions have only the rungs' names, and no memory.
        rungs = data.get("rungs", [])
        report.rungs = [RungTaken(one) if isinstance(one, str) else RungTaken(**one) for one in rungs]
        report.speakers = [ReportedSpeaker(**one) for one in data.get("speakers", [])]
        report.upscaled = Upscaled(**data["upscaled"]) if data.get("upscaled") else None
        report.memory = _memory(data["memory"]) if data.get("memory") else None
        _check(report)
        return report
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError, BadInput) as error:
        raise BadInput(f"{path.name} is not a run report.", "Delete it, or restore the file.") from error


def together(uses: Sequence[MemoryUse | None]) -> MemoryUse | None:
    """The largest peaks of several runs; None if none was measured."""
    measured = [use for use in uses if use is not None]
    if not measured:
        return None
    gpus: dict[int, GpuUse] = {}
    for gpu in (gpu for use in measured for gpu in use.gpus):
        other = gpus.get(gpu.index, gpu)
        gpus[gpu.index] = replace(
            gpu,
            peak_bytes=_most(gpu.peak_bytes, other.peak_bytes),
            card_peak_bytes=_most(gpu.card_peak_bytes, other.card_peak_bytes),
        )
    return MemoryUse(
        gpus=tuple(gpus[index] for index in sorted(gpus)),
        host_peak_bytes=_most(*(use.host_peak_bytes for use in measured)),
        pinned_bytes=measured[-1].pinned_bytes,
        pinned_peak_bytes=_most(*(use.pinned_peak_bytes for use in measured)),
    )


def _planned_gpus(report: RunReport) -> list[dict[str, Any]]:
    return [] if report.plan is None else report.plan["gpus"]


def _check(report: RunReport) -> None:
    """Raises: TypeError, KeyError for a report that cannot be displayed."""
    numbers = (
        report.num_frames,
        report.duration_s,
        report.elapsed_s,
        report.first_frame_s,
        report.frames_per_s,
        report.host_planned_bytes,
    )
    keys = ("index", "peak_bytes", "total_bytes")
    planned = (gpu[key] for gpu in _planned_gpus(report) for key in keys)
    sides = (side for one in report.speakers for side in (*one.face, *(one.mask or ())))
    for value in (*numbers, *planned, *sides, *(report.portrait_size or ())):
        if not isinstance(value, int | float | None):
            raise TypeError(f"{value!r} is no number")
    Preset.from_dict(report.preset)


def _memory(data: dict[str, Any]) -> MemoryUse:
    return MemoryUse(**{**data, "gpus": tuple(GpuUse(**gpu) for gpu in data["gpus"])})


def _most(*sizes: int | None) -> int | None:
    return max((size for size in sizes if size is not None), default=None)


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that affect results."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue  # not every engine needs every package
    return found
