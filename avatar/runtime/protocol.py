"""All messages between processes that run engines, and their encoding: flat ones as JSON, others pickled.

Pickled messages are used over socket pairs between our own processes, and over TCP once both sides have
proved that they know the secret (see torchrun_client). Channels that others can write to, such as a store,
carry only JSON. Messages among the ranks of a group, mostly tensors, are in distributed.p2p.
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
    """Generate what is requested. run: the number that identifies its answers."""

    run: int
    request: Request


@dataclass(frozen=True)
class RunLive(Run):
    """Start a live session; its sound follows in LiveSound messages."""

    request: LiveRequest  # type: ignore[assignment]


@dataclass(frozen=True)
class LiveSound:
    """The next sound of a live session. samples: int16 (n,) at SOUND_HZ."""

    run: int
    samples: np.ndarray


@dataclass(frozen=True)
class Prepare:
    """Get ready for a portrait, uint8 (H, W, 3) RGB, that a request may soon bring. live: of a session."""

    portrait: np.ndarray
    preset: Preset
    live: bool = False


@dataclass(frozen=True)
class Cancel:
    """End the run, keeping the frames made so far."""

    run: int


@dataclass(frozen=True)
class Ended:
    """The run is over; error: what it raised, if anything."""

    run: int
    error: AvatarError | None = None


# To the engine's process, and back. A run's events are sent unwrapped, before Ended.


@dataclass(frozen=True)
class StartEngine:
    """First message: the FrameSource to build, "package.module:Class", its options and the log level."""

    source: str
    options: dict[str, Any] = field(default_factory=dict)
    log_level: int = logging.INFO


@dataclass(frozen=True)
class Ready:
    """The source is built. label: see FrameSource."""

    label: str


@dataclass(frozen=True)
class Heartbeat:
    """A sign of life. use: that of the current run, or of the last one."""

    use: MemoryUse


# To ranks, and back.


@dataclass(frozen=True)
class StartRank:
    """First message. roles: the module whose lead() or assist() the rank runs. parent: its parent's pid."""

    preset: Preset
    weights: Path | None
    roles: str
    rank: int
    world_size: int
    log_level: int
    parent: int = field(default_factory=os.getpid)


@dataclass(frozen=True)
class RendezvousPort:
    """Where the ranks of this machine meet: a port that rank 0 opened, forwarded to the other ranks."""

    port: int


@dataclass(frozen=True)
class PlanRequest:
    """Ask for the plan of a run of this request; answered, in order, by Planned."""

    request: Request


@dataclass(frozen=True)
class Planned:
    """The plan, or why there is none. binds: if it does not fit, the run steps down before it begins."""

    plan: Plan | AvatarError
    binds: bool = True


@dataclass(frozen=True)
class MadeFrames:
    """Frames of a run, uint8 T H W 3. anchor: sent with a run's first frames, see ResumeState."""

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
    """A rank's heartbeat. role, place: its part and device in words, "" until known. ticks: see RankMeter.

    busy_s, sent_bytes: since its start. step_s: its longest recent step, None before the first. at_s: by its
    own clock. peak_bytes: peak of its tensors on the device; None without a GPU. pinned_bytes: page-locked
    memory that it holds. missing: codes of the fast paths that its device lacks, see hardware.fast_paths.
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
    missing: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "missing", tuple(self.missing))  # JSON has made it a list


@dataclass(frozen=True)
class Failed:
    """A rank has failed, and ends. foreseen: the error is the cause; else a bug, or due to another rank.

    at_s: by the wall clock, to find the first of several failures.
    """

    rank: int
    error: AvatarError
    foreseen: bool
    at_s: float = field(default_factory=time.time)


class OutOfMemory(DoesNotFit):
    """A rank's device ran out of memory. device: its name, like "GPU 2 (rank 1)"."""

    device = ""

    @classmethod
    def on(cls, rank: int, place: str) -> OutOfMemory:
        """place: the device in words, "" if the rank has none yet."""
        device = f"{place} (rank {rank})" if place else f"Rank {rank}"
        error = cls(
            f"{device} ran out of memory.",
            "Close other programs that use it, or take a smaller size, fewer infer_frames or steps.",
        )
        error.device = device
        return error


# To rank 0 of ranks started elsewhere, and back, in addition to the messages for any ranks.


@dataclass(frozen=True)
class Greeting:
    """Rank 0's first message: the preset of its ranks, and whether another client is attached."""

    preset: Preset
    is_taken: bool


@dataclass(frozen=True)
class RequestFiles:
    """Sent before a Run: the contents of its files."""

    bundle: RequestBundle


@dataclass(frozen=True)
class PartCarry:
    """The file that a part of a long video leaves for the next one."""

    carry: bytes


@dataclass(frozen=True)
class Quit:
    """End all ranks, because one is lost."""


_FLAT = {kind.__name__: kind for kind in (Cancel, Ended, Ready, RendezvousPort, Pulse, Failed, Quit)}
_ERRORS = {  # the more specific ones last
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
    """A flat message as JSON. Raises: TypeError for any other message."""
    if type(message) not in _FLAT.values():
        raise TypeError(f"{type(message).__name__} is not flat")
    values = {
        name: _said(value) if isinstance(value, AvatarError) else value
        for name, value in vars(message).items()
    }
    return json.dumps({type(message).__name__: values})


def from_json(text: str) -> Any:
    """Parse to_json's output. Raises: ValueError, KeyError, TypeError, AttributeError for anything else."""
    ((name, values),) = json.loads(text).items()
    if values.get("error") is not None:
        values["error"] = _as_error(values["error"])
    return _FLAT[name](**values)


class Link(Connection):
    """A connection that carries messages."""

    def send(self, message: Any) -> None:
        """Send a message; not thread-safe. Raises: OSError when the other side is gone."""
        if type(message) in _FLAT.values():
            self.send_bytes(_JSON + to_json(message).encode())
        else:
            buffer = io.BytesIO(_PICKLE)
            buffer.seek(len(_PICKLE))
            pickle.dump(message, buffer, pickle.HIGHEST_PROTOCOL)
            self.send_bytes(buffer.getbuffer())

    def recv(self) -> Any:
        """Wait for the next message. Raises: EOFError, OSError when the other side is gone."""
        data = memoryview(self.recv_bytes())
        if data[:1] == _JSON:
            return from_json(str(data[1:], "utf-8"))
        return pickle.loads(data[1:])


_JSON, _PICKLE = b"J", b"P"


def _said(error: AvatarError) -> dict[str, Any]:
    """An error as plain data; an unlisted class becomes its nearest listed base."""
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
