"""A run as its consumer has seen it, whichever ranks make it: from here fresh ones go on with it.

Where one rank's GPU is full, the others wait in the middle of something that only it could finish. So all are
ended, which frees what they held, and others go on a rung lower. No torch: the engine's process keeps this.
"""

from __future__ import annotations

import uuid
from collections import deque
from dataclasses import replace
from pathlib import Path

import numpy as np

from avatar.events import Notice
from avatar.geometry import BLOCK_FRAMES, MOTION_FRAMES, Size
from avatar.request import Part, Request
from avatar.runtime.carry import Carry
from avatar.runtime.fallback import Descent
from avatar.runtime.rank_messages import Made

FILE = "shown.safetensors"  # in the run's own folder: what fresh ranks begin from


class Course:
    """One run. num_rungs: how many of its ladder have been taken."""

    def __init__(self, request: Request, num_rungs: int = 0) -> None:
        self.num_rungs = max(num_rungs, request.part.num_rungs if request.part else 0)
        self._request = request
        self._part = request.part or Part(uuid.uuid4().hex, 0, request.num_frames)
        self._frames: deque[np.ndarray] = deque(maxlen=MOTION_FRAMES)
        self._picture: np.ndarray | None = None
        self._anchor: np.ndarray | None = None
        self._num_shown = 0

    @property
    def rest(self) -> Request:
        """What is left to make; at first all of it. Raises: BadInput, OSError."""
        request = self._request
        if not self.num_rungs and not self._num_shown:
            return request
        part = replace(
            self._part,
            first_frame=self._next_frame,
            carry=self._written(request.work / FILE) if self._num_shown else self._part.carry,
            num_rungs=self.num_rungs,
        )
        return replace(request, num_frames=request.num_frames - self._num_shown, part=part)

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left to make."""
        return self._num_shown >= self._request.num_frames

    def pass_frames(self, made: Made) -> np.ndarray:
        """Frames go to the consumer; returns them."""
        if self._picture is None:
            self._picture = made.frames[0]
        if self._anchor is None:
            self._anchor = made.anchor
        self._frames.extend(made.frames)
        self._num_shown += len(made.frames)
        return made.frames

    def pass_notice(self, notice: Notice) -> None:
        """A notice does; the ranks may have taken a rung themselves."""
        self.num_rungs += notice.rung is not None

    def step_down(self, device: str) -> Notice:
        """Take the next rung, because a device is full. Raises: DoesNotFit when none is left."""
        descent = Descent(self._request)
        descent.skip(self.num_rungs)
        notice = descent.step_down(-(-self._next_frame // BLOCK_FRAMES), device)
        self.num_rungs = descent.num_taken
        return notice

    def leave(self) -> None:
        """For the next part of a long video, in the place of ranks that could not. Raises: as rest."""
        if self._part.leave is not None:
            self._written(self._part.leave)

    def close(self) -> None:
        """The run is over."""
        (self._request.work / FILE).unlink(missing_ok=True)

    @property
    def _next_frame(self) -> int:
        return self._part.first_frame + self._num_shown

    def _written(self, path: Path) -> Path:
        """The file for a path, of what was shown in this part and before it."""
        assert self._picture is not None
        frames, picture, anchor = np.stack(self._frames), self._picture, self._anchor
        if self._part.carry is not None:
            height, width = picture.shape[:2]
            before = Carry.read(self._part.carry, Size(width, height))
            frames = np.concatenate([before.frames, frames])[-MOTION_FRAMES:]
            picture, anchor = before.picture, before.anchor
        assert anchor is not None  # ranks tell it with their first frames
        Carry(frames, anchor, picture).write(path)
        return path
