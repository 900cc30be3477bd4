"""The protocols of engines and of their frame sources."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np

from avatar.events import Event, Notice, PlanMade, Progress
from avatar.preset import Preset
from avatar.request import Request

SELF_TEST_LABEL = "self-test: noise"

Frames = np.ndarray  # uint8 (T, H, W, 3) RGB, the next T frames of the video
FrameItem = Frames | Notice | Progress | PlanMade  # what a source yields


class FrameSource(Protocol):
    """The part that differs between engines: yields frames in order, with notices, progress and new plans.

    A source knows nothing of encoding, segments, files or processes: runtime.stream handles those for every
    engine, and runtime.engine_process runs the source in a subprocess. Optional methods:
    `plan_for(request, cancelled)`: the planning.plan.Plan that it follows, for the run's report;
    `prepare(portrait, preset, live)`: see protocol.Prepare;
    `pinned_bytes()`: page-locked host memory that it holds now, called twice a second from another thread;
    `anchor()`: lets fresh ranks resume the run, see ResumeState.
    """

    label: str  # shown beside the output: "preview", or "" for the full model

    def frames(self, request: Request, cancelled: Callable[[], bool]) -> Iterator[FrameItem]:
        """Yield batches of frames, of constant H and W, until request.num_frames are made.

        cancelled: called at least once per step; when it returns True, raise Cancelled. Raises: AvatarError.
        """
        ...

    def close(self) -> None:
        """Release all resources; the source is not used again."""
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

        stream() then ends with Finished(stopped=True). May be called from any thread, even without a run.
        """
        ...

    def close(self) -> None:
        """End the engine's process and free its memory."""
        ...


def prepare(engine: object, portrait: np.ndarray, preset: Preset, live: bool = False) -> None:
    """Let an idle engine get ready for a portrait, if it can; see EngineProcess.prepare."""
    get_ready = getattr(engine, "prepare", None)
    if get_ready is not None:
        get_ready(portrait, preset, live)


def warm_up(engine: object) -> None:
    """Start what an engine's first run would wait for, if it has a warm() for it. Raises: AvatarError."""
    warm = getattr(engine, "warm", None)
    if warm is not None:
        warm()
