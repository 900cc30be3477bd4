"""Read portraits and speech in this process; runtime.bounded_reader reads them in a subprocess."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from avatar.geometry import Size
from avatar.media.limits import InputLimits
from avatar.media.portrait import Portrait, open_mask, open_portrait
from avatar.media.pose_video import PoseVideo, write_pose
from avatar.media.speech_reader import Speech, check_speech, write_speech


class Reader:
    """Reads pictures and sound in this process, as the command line does."""

    def portrait(self, path: Path, *, name: str | None = None, limits: InputLimits | None = None) -> Portrait:
        """See open_portrait. Raises: BadInput."""
        return open_portrait(path, name=name, limits=limits)

    def mask(
        self,
        path: Path,
        *,
        name: str | None = None,
        limits: InputLimits | None = None,
        brush: int | None = None,
    ) -> np.ndarray:
        """See open_mask. Raises: BadInput."""
        return open_mask(path, name=name, limits=limits, brush=brush)

    def speech(
        self, source: Path, target: Path, *, name: str | None = None, limits: InputLimits | None = None
    ) -> Speech:
        """See write_speech. Raises: BadInput."""
        return write_speech(source, target, name=name, limits=limits)

    def pose(
        self,
        source: Path,
        target: Path,
        *,
        size: Size,
        num_frames: int,
        name: str | None = None,
        limits: InputLimits | None = None,
    ) -> PoseVideo:
        """See write_pose. Raises: BadInput."""
        return write_pose(source, target, size=size, num_frames=num_frames, name=name, limits=limits)

    def judge(self, speech: Path, *, name: str | None = None, limits: InputLimits | None = None) -> Speech:
        """Check a file as speech() does, without writing; see check_speech. Raises: BadInput."""
        return check_speech(speech, name=name, limits=limits)

    def ahead(self, portrait: Path | None, speech: Path | None, every_s: float) -> Iterator[None]:
        """Read files before they are needed; yield every every_s seconds until both are read or failed."""
        yield from ()
