"""The Engine protocol, and the one place that turns a preset into an engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np

from avatar.events import Event, Notice, PlanMade, Progress
from avatar.request import Request

SELF_TEST_LABEL = "self-test: noise"

Frames = np.ndarray  # uint8 (T, H, W, 3) RGB, the next T frames of the video
FrameItem = Frames | Notice | Progress | PlanMade  # what a source yields


class FrameSource(Protocol):
    """What an engine adds of its own: frames in order, with notices, progress and new plans between them.

    It knows nothing of encoding, segments, files or processes: runtime.stream does that for every engine,
    and runtime.engine_process runs it in a process of its own. Further methods, for sources that have them:
    `plan_for(request, cancelled)`, the planning.plan.Plan by which it acts, for the run's report;
    `pinned_bytes()`, the page-locked host memory that it holds now, which another thread asks twice a second;
    `anchor()`, by which ranks that know nothing of the run can go on with it: see ResumeState.
    """

    label: str  # shown wherever the output shows: "preview", or "" for the real thing

    def frames(self, request: Request, cancelled: Callable[[], bool]) -> Iterator[FrameItem]:
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
