"""The events that an engine reports during a run. Plain data, pickled between processes."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from avatar.planning.plan import Plan


class Phase(StrEnum):
    """The phases of a run, in order."""

    QUEUED = "queued"
    LOADING = "loading"
    ENCODING = "encoding"  # conditions: face, text, reference, speech features
    GENERATING = "generating"
    FINISHING = "finishing"
    UPSCALING = "upscaling"  # where it is asked for


class Activity(StrEnum):
    """What an engine does within a phase before its first frame, where that may take long."""

    STARTING = "starting"  # processes, libraries, CUDA
    READING = "reading"  # weights
    CONVERTING = "converting"  # the same, quantised first, for the cache
    COMPILING = "compiling"  # and the first block


@dataclass(frozen=True)
class Segment:
    """One playable piece of the video, finished and on disk.

    path: an .mp4 whose video starts on an IDR frame. index: from 0.
    start_frame, num_frames: at the request's frame rate; segments follow each other without gap or overlap.
    """

    path: Path
    index: int
    start_frame: int
    num_frames: int


@dataclass(frozen=True)
class PartDone:
    """One more part of a long video is finished and on disk, and will not be made again.

    path: an .mp4 that plays by itself. index: from 0, of num_parts. start_frame, num_frames: see Segment.
    """

    path: Path
    index: int
    num_parts: int
    start_frame: int
    num_frames: int


@dataclass(frozen=True)
class RankLoad:
    """The load of one rank of an engine on several GPUs.

    role: its part in words, like "layers 0–13". place: its device, like "GPU 0", "" while it starts.
    busy_percent: how much of the last few seconds it worked rather than waited; None while unknown.
    """

    rank: int
    role: str
    place: str
    busy_percent: float | None = None


@dataclass(frozen=True)
class Progress:
    """The progress of a run. Frames count from 0 to num_frames; times in seconds since the run began.

    num_parts: of a long video, else 0. ranks: of an engine on several GPUs, else empty. activity: what it
    does within the phase, where that is known. usual_s: seconds that this usually takes here, if known.
    """

    phase: Phase
    frames_done: int = 0
    num_frames: int = 0
    segments_done: int = 0
    num_segments: int = 0
    elapsed_s: float = 0.0
    fps: float | None = None  # frames per second since the first frame was requested
    first_frame_s: float | None = None
    eta_s: float | None = None
    parts_done: int = 0
    num_parts: int = 0
    ranks: tuple[RankLoad, ...] = ()
    activity: Activity | None = None
    usual_s: float | None = None

    @property
    def bottleneck(self) -> RankLoad | None:
        """The busiest of several ranks, which the others wait for."""
        known = [rank for rank in self.ranks if rank.busy_percent is not None]
        return max(known, key=lambda rank: rank.busy_percent or 0.0) if len(known) > 1 else None


@dataclass(frozen=True)
class Notice:
    """Something the user should know: a warning, or a fallback that was taken.

    code: a stable name that the page translates; text: complete English, for the log and the command line.
    rung: the ladder's rung, when one was taken.
    """

    code: str
    text: str
    level: str = "info"  # info | warning
    rung: str | None = None
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PlanMade:
    """The run's memory plan: reported when the run begins, and again on every rung."""

    plan: Plan


@dataclass(frozen=True)
class Finished:
    """The last event of every run that made at least one frame, even if it was stopped.

    video: the whole .mp4. report: the run report (JSON) beside it. stopped: it ended early, by the user or an
    error. error: the text of that error, None if the user stopped the run or it completed.
    """

    video: Path
    report: Path
    num_frames: int
    duration_s: float
    stopped: bool = False
    error: str | None = None


Event = Segment | PartDone | Progress | Notice | PlanMade | Finished
