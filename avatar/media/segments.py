"""One H.264 encoder whose packets go both into playable segments and into the finished file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from avatar.events import Segment
from avatar.geometry import FPS
from avatar.media.speech import SpeechReader


class SegmentWriter:
    """Frames in; segments in `folder` and the finished file at `output` out. Memory does not grow with the length."""

    def __init__(
        self,
        speech: SpeechReader,
        folder: Path,
        output: Path,
        *,
        lengths: Iterable[int],
        fps: int = FPS,
        threads: int = 1,
    ) -> None:
        """lengths: frames of each segment in turn, endless or as many as needed."""
        raise NotImplementedError

    def write(self, frames: np.ndarray) -> list[Segment]:
        """Encode uint8 (T, H, W, 3) RGB and return the segments that became complete."""
        raise NotImplementedError

    def finish(self) -> list[Segment]:
        """Close the last, perhaps short, segment and put the finished file in its place; audio ends with the frames."""
        raise NotImplementedError

    def abort(self) -> None:
        """Close and delete everything unfinished."""
        raise NotImplementedError
