"""The Engine protocol, and the one place that turns a preset into an engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from avatar.events import Event, Notice, Progress
from avatar.request import Request

Frames = np.ndarray  # uint8 (T, H, W, 3) RGB, the next T frames of the video


class FrameSource(Protocol):
    """What an engine adds of its own: frames in order, with notices and progress between them.

    It knows nothing of encoding, segments, files or processes; media.stream does that for every engine.
    """

    label: str  # burnt into nothing; shown wherever the output shows ("preview", "")

    def frames(self, request: Request) -> Iterator[Frames | Notice | Progress]:
        """Yield batches of frames, H and W constant, until request.num_frames are made. Raises: AvatarError."""
        ...

    def cancel(self) -> None:
        """Make frames() raise Cancelled within one step; safe from another thread."""
        ...

    def close(self) -> None:
        """Release everything; the source is not used again."""
        ...


class Engine(Protocol):
    """Turns a request into events; one run at a time."""

    def stream(self, request: Request) -> Iterator[Event]:
        """Yield events until Finished.

        Closing the iterator cancels the run. Raises: AvatarError, after Finished if frames were made.
        """
        ...

    def cancel(self) -> None:
        """Stop the run within 0.5 s (preview) or one step (diffusion); stream() then ends with Finished(stopped=True)."""
        ...

    def close(self) -> None:
        """Free the engine's process and memory."""
        ...
