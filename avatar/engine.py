"""The Engine protocol, and the one place that turns a preset into an engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from avatar.errors import BadInput
from avatar.events import Event, Notice, Progress
from avatar.preset import Preset
from avatar.request import Request

SELF_TEST_LABEL = "self-test: noise"

Frames = np.ndarray  # uint8 (T, H, W, 3) RGB, the next T frames of the video


class FrameSource(Protocol):
    """What an engine adds of its own: frames in order, with notices and progress between them.

    It knows nothing of encoding, segments, files or processes: media.stream does that for every engine,
    and avatar.worker runs it in a process of its own. Further methods, for sources with something to tell:
    `plan_for(request, cancelled)`, the memory.plan.Plan by which it acts, for the run's report;
    `pinned_bytes()`, the page-locked host memory that it holds now, which another thread asks twice a second;
    `anchor()`, by which ranks that know nothing of the run can go on with it: see diffusion.carry.Carry.
    """

    label: str  # shown wherever the output shows: "preview", or "" for the real thing

    def frames(self, request: Request, cancelled: Callable[[], bool]) -> Iterator[Frames | Notice | Progress]:
        """Yield batches of frames, H and W constant, until request.num_frames are made.

        cancelled: asked at least once a step; when it says yes, raise Cancelled. Raises: AvatarError.
        """
        ...

    def close(self) -> None:
        """Release everything; the source is not used again."""
        ...


class Engine(Protocol):
    """Turns a request into events; one run at a time."""

    def stream(self, request: Request) -> Iterator[Event]:
        """Yield events until Finished.

        Closing the iterator cancels the run. Raises: AvatarError, after Finished if frames were made;
        Cancelled when the run was stopped before its first frame.
        """
        ...

    def cancel(self) -> None:
        """Stop the run within 0.5 s (preview) or one step (diffusion).

        stream() then ends with Finished(stopped=True). Safe from another thread, also when nothing runs.
        """
        ...

    def close(self) -> None:
        """Free the engine's process and memory."""
        ...


def open_engine(
    preset: Preset,
    *,
    weights: Path | None = None,
    gpus: Sequence[str] | None = None,
    attach: str | None = None,
) -> Engine:
    """The engine that the preset names, in a process of its own; nothing heavy is loaded yet.

    attach: "host:port" of ranks that torchrun started, for a preset of the diffusion engine.
    preset: resolved ("auto" has become the best that fits). weights: the checkpoint folder, when stated.
    gpus: those that it may see, as CUDA_VISIBLE_DEVICES names them. Raises: BadInput for a preset that is
    not resolved.
    """
    from avatar.worker import EngineProcess

    source, options = source_of(preset, weights)
    if attach is not None and preset.engine == "diffusion":
        options["attach"] = attach
    return EngineProcess(source, gpus, **options)


def serves(preset: Preset) -> Preset:
    """What an open engine depends on: how its models are held; what is generated comes with each request."""
    held = Preset(name="", title="", summary="", engine=preset.engine)
    if preset.engine == "preview":
        return held
    return replace(held, requires=preset.requires, memory=preset.memory, parallel=preset.parallel)


def source_of(preset: Preset, weights: Path | None) -> tuple[str, dict[str, Any]]:
    """The FrameSource of a preset, "package.module:Class", and what it is built with. Raises: BadInput."""
    if preset.engine == "preview":
        return "avatar.preview.source:PreviewSource", {}
    if preset.engine == "diffusion":
        return "avatar.parallel.ranked:RankedSource", {"preset": preset, "weights": weights}
    raise BadInput(f"Preset {preset.name!r} names no engine.", "Resolve it first, or pick another preset.")
