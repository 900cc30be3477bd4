"""Every message between processes that run engines, and how it travels: flat ones as JSON, others pickled.

Pickled ones pass over socket pairs between our own processes, and over TCP once both sides have proved that
they know the secret (see attach). What may be written by strangers, like a store, carries JSON alone.
What ranks of one group say to each other, tensors mostly, is in distributed.p2p.
"""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from avatar.errors import (
    AvatarError,
    BadInput,
    Cancelled,
    DoesNotFit,
    NotPlaced,
    WeightsMissing,
    WorkerLost,
)
from avatar.events import Notice, PlanMade, Progress
from avatar.planning.plan import Plan
from avatar.preset import Preset
from avatar.request import LiveRequest, Request
from avatar.runtime.report import MemoryUse
from avatar.runtime.request_bundle import RequestBundle

# To any process that makes frames, and back.


@dataclass(frozen=True)
class Run:
    """Make what is requested. run: by what its answers are known."""

    run: int
    request: Request


@dataclass(frozen=True)
class RunLive(Run):
    """Make a session without end; its sound follows."""

    request: LiveRequest  # type: ignore[assignment]


@dataclass(frozen=True)
class LiveSound:
    """The next sound of a live session. samples: int16 (n,) at SOUND_HZ."""

    run: int
    samples: np.ndarray


@dataclass(frozen=True)
class Cancel:
    """End the run, keeping what was made of it."""

    run: int


@dataclass(frozen=True)
class Ended:
    """The run is over; error: what it raised, if anything."""

    run: int
    error: AvatarError | None = None


# To the engine's process, and back. Before Ended come the run's events as they are.


@dataclass(frozen=True)
class StartEngine:
    """First message: which FrameSource to build, "package.module:Class", with what, and how much to log."""

    source: str
    options: dict[str, Any] = field(default_factory=dict)
    log_level: int = logging.INFO


@dataclass(frozen=True)
class Ready:
    """The source is built. label: what its output is called."""

    label: str


@dataclass(frozen=True)
class Heartbeat:
    """A sign of life. use: of the run that goes on, or of the last one."""

    use: MemoryUse


# To ranks, and back.


@dataclass(frozen=True)
class StartRank:
    """First message. roles: the module whose lead() or assist() it runs. parent: who started it."""

    preset: Preset
    weights: Path | None
    roles: str
    rank: int
    world_size: int
    log_level: int
    parent: int = field(default_factory=os.getpid)


@dataclass(frozen=True)
class Meeting:
    """Where the ranks of this machine find each other: a port that rank 0 opened, passed on to the others."""

    port: int


@dataclass(frozen=True)
class Ask:
    """What would a run of this request hold? Answered in turn, by Planned."""

    request: Request


@dataclass(frozen=True)
class Planned:
    """The plan, or why there is none. binds: where it does not fit, the run steps down before it begins."""

    plan: Plan | AvatarError
    binds: bool = True


@dataclass(frozen=True)
class Made:
    """Frames of a run, uint8 T H W 3. anchor: with a run's first ones, as ResumeState keeps it."""

    run: int
    frames: np.ndarray
    anchor: np.ndarray | None = None


@dataclass(frozen=True)
class RunEvent:
    """An event of a run."""

    run: int
    event: Notice | Progress | PlanMade


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
class Failed:
    """A rank cannot go on, and ends. foreseen: the error is the cause; else a bug, or another rank's fault.

    at_s: by the wall clock, so that the first of several failures can be known.
    """

    rank: int
    error: AvatarError
    foreseen: bool
    at_s: float = field(default_factory=time.time)


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


# To rank 0 of ranks that somebody else started, and back, around what is said to any ranks.


@dataclass(frozen=True)
class Greeting:
    """Rank 0's first word: the preset that its ranks hold, and whether it serves somebody else now."""

    preset: Preset
    is_taken: bool


@dataclass(frozen=True)
class Shipped:
    """Goes before a Run: the contents of its files."""

    bundle: RequestBundle


@dataclass(frozen=True)
class Left:
    """What a part has left for the next one."""

    carry: bytes


@dataclass(frozen=True)
class Quit:
    """End all ranks: one of them is lost."""


_FLAT = {kind.__name__: kind for kind in (Cancel, Ended, Ready, Meeting, Pulse, Failed, Quit)}
_ERRORS = {  # the more special ones last
    kind.__name__: kind
    for kind in (
        AvatarError,
        BadInput,
        Cancelled,
        DoesNotFit,
        WeightsMissing,
        WorkerLost,
        NotPlaced,
        OutOfMemory,
    )
}


def to_json(message: Any) -> str:
    """A flat message as text. Raises: TypeError for any other."""
    if type(message) not in _FLAT.values():
        raise TypeError(f"{type(message).__name__} is not flat")
    values = {
        name: _said(value) if isinstance(value, AvatarError) else value
        for name, value in vars(message).items()
    }
    return json.dumps({type(message).__name__: values})


def from_json(text: str) -> Any:
    """What to_json wrote. Raises: ValueError, KeyError, TypeError, AttributeError for anything else."""
    ((name, values),) = json.loads(text).items()
    if values.get("error") is not None:
        values["error"] = _as_error(values["error"])
    return _FLAT[name](**values)


class Link(Connection):
    """A connection over which messages pass."""

    def send(self, message: Any) -> None:
        """Send a message; one thread at a time. Raises: OSError when the other side is gone."""
        if type(message) in _FLAT.values():
            self.send_bytes(_JSON + to_json(message).encode())
        else:
            buffer = io.BytesIO(_PICKLE)
            buffer.seek(len(_PICKLE))
            pickle.dump(message, buffer, pickle.HIGHEST_PROTOCOL)
            self.send_bytes(buffer.getbuffer())

    def recv(self) -> Any:
        """The next message, waited for. Raises: EOFError, OSError when the other side is gone."""
        data = memoryview(self.recv_bytes())
        if data[:1] == _JSON:
            return from_json(str(data[1:], "utf-8"))
        return pickle.loads(data[1:])


_JSON, _PICKLE = b"J", b"P"


def _said(error: AvatarError) -> dict[str, Any]:
    """An error as plain data; one of a kind that is not known as its nearest known."""
    kind = next(name for name, known in reversed(_ERRORS.items()) if isinstance(error, known))
    said = {"kind": kind, "message": error.message, "remedy": error.remedy}
    if isinstance(error, OutOfMemory):
        return {**said, "device": error.device}
    return {**said, "kept": [str(path) for path in error.kept]} if isinstance(error, NotPlaced) else said


def _as_error(said: dict[str, Any]) -> AvatarError:
    if said["kind"] == NotPlaced.__name__:
        return NotPlaced(said["message"], said["remedy"], [Path(path) for path in said["kept"]])
    error = _ERRORS[said["kind"]](said["message"], said["remedy"])
    if isinstance(error, OutOfMemory):
        error.device = said["device"]
    return error
