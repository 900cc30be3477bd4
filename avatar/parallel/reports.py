"""What the engine's process and its ranks say to each other, beside service's Run, Cancel and Ended."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from avatar.errors import AvatarError, DoesNotFit
from avatar.events import Notice, Progress
from avatar.memory.plan import Plan
from avatar.preset import Preset


@dataclass(frozen=True)
class Start:
    """First message to a rank. roles: the module whose lead() or assist() it runs.

    log_level: how much to log. parent: the process that started it.
    """

    preset: Preset
    weights: Path | None
    roles: str
    rank: int
    world_size: int
    log_level: int
    parent: int = field(default_factory=os.getpid)


@dataclass(frozen=True)
class Meeting:
    """Where the ranks of this machine find each other: a port that rank 0 opened, told to the others."""

    port: int


@dataclass(frozen=True)
class Pulse:
    """A rank is alive. role, place: its part and its device in words, "" until it has them. ticks: see Meter.

    busy_s, sent_bytes: since it began. step_s: the longest of its last steps, None before the first. at_s: by
    its own clock. peak_bytes: the most that its tensors took of its device; None without a GPU. pinned_bytes:
    page-locked memory that it holds.
    """

    rank: int
    role: str = ""
    place: str = ""
    ticks: int = 0
    busy_s: float = 0.0
    sent_bytes: int = 0
    peak_bytes: int | None = None
    pinned_bytes: int = 0
    step_s: float | None = None
    at_s: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Made:
    """Frames of a run, uint8 T H W 3. anchor: with a run's first ones, the first latent frame: see Carry."""

    run: int
    frames: np.ndarray
    anchor: np.ndarray | None = None


@dataclass(frozen=True)
class Planned:
    """Rank 0's answer to Ask: the plan, or why there is none."""

    plan: Plan | AvatarError


@dataclass(frozen=True)
class Told:
    """An event of a run."""

    run: int
    event: Notice | Progress


class OutOfMemory(DoesNotFit):
    """A rank's device is full. device: its name, like "GPU 2 (rank 1)"."""

    device = ""

    @classmethod
    def on(cls, rank: int, place: str) -> OutOfMemory:
        """place: the device in words, "" where the rank has none yet."""
        device = f"{place} (rank {rank})" if place else f"Rank {rank}"
        error = cls(
            f"{device} ran out of memory.",
            "Close other programs that use it, or take a smaller size, fewer infer_frames or steps.",
        )
        error.device = device
        return error


@dataclass(frozen=True)
class Failed:
    """A rank cannot go on, and ends. foreseen: the error is the cause; else a bug, or another rank's fault.

    at_s: by the wall clock, so that the first of several failures can be told.
    """

    rank: int
    error: AvatarError
    foreseen: bool
    at_s: float = field(default_factory=time.time)
