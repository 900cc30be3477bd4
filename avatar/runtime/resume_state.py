"""The resume state of a run: everything that fresh ranks need to continue it.

RankedSource updates one as frames pass through it, and requests the rest from fresh ranks when ranks are
lost; a source leaves one for the next part of a long video.
"""

from __future__ import annotations

import uuid
from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from avatar.errors import BadInput
from avatar.geometry import BLOCK_FRAMES, MOTION_FRAMES, Size, num_blocks
from avatar.media import atomic
from avatar.request import Part, Request


@dataclass
class ResumeState:
    """One run, or one part of a long video.

    next_frame: index in the speech of the next frame to make. frames_left: how many are left from there.
    frames: the last ones shown, at most 73, uint8 (H, W, 3) each. picture: the first one shown.
    anchor: float32 (16, 1, h, w), the first latent frame that was generated.
    num_rungs: rungs taken of the preset's ladder. num_full: how often memory ran out.
    """

    next_frame: int
    frames_left: int
    num_rungs: int = 0
    num_full: int = 0
    frames: deque[np.ndarray] = field(default_factory=lambda: deque(maxlen=MOTION_FRAMES))
    picture: np.ndarray | None = None
    anchor: np.ndarray | None = None

    @classmethod
    def of(cls, request: Request, size: Size | None = None) -> ResumeState:
        """A request's initial state. size: of the video, if known.

        Raises: BadInput when the previous part's file cannot be used.
        """
        part = request.part
        if part is None:
            return cls(0, request.num_frames)
        state = cls(part.first_frame, request.num_frames, part.num_rungs, part.num_full)
        if part.carry is not None:
            state._read(part.carry, size)
        return state

    @property
    def goes_on(self) -> bool:
        """Whether there are frames to continue from; otherwise the run begins from the portrait."""
        return bool(self.frames)

    @property
    def is_whole(self) -> bool:
        """Whether no frames are left to make."""
        return self.frames_left <= 0

    @property
    def next_block(self) -> int:
        """The index, in the whole speech, of the first block of which nothing has been shown."""
        return -(-self.next_frame // BLOCK_FRAMES)

    @property
    def blocks_left(self) -> int:
        """The number of blocks for the remaining frames."""
        return -(-self.frames_left // BLOCK_FRAMES) if self.goes_on else num_blocks(self.frames_left)

    def show(self, frames: np.ndarray) -> np.ndarray:
        """Record frames, uint8 (T, H, W, 3), as shown; returns them."""
        if self.picture is None:
            self.picture = frames[0].copy()
        self.next_frame += len(frames)
        self.frames_left -= len(frames)
        self.frames.extend(frames)
        return frames

    def end_at(self, num_frames: int) -> None:
        """No frame is made from this one on, counted as next_frame is."""
        self.frames_left = min(self.frames_left, num_frames - self.next_frame)

    def rest(self, request: Request, file: Path) -> Request:
        """The request for the remaining frames; the state is written to the file. Raises: OSError."""
        part = request.part or Part(uuid.uuid4().hex, 0, request.num_frames)
        carry = part.carry
        if self.next_frame > part.first_frame:
            self.write(file)
            carry = file
        elif (self.num_rungs, self.num_full) == (part.num_rungs, part.num_full):
            return request
        part = replace(
            part,
            first_frame=self.next_frame,
            carry=carry,
            num_rungs=self.num_rungs,
            num_full=self.num_full,
        )
        return replace(request, num_frames=self.frames_left, part=part)

    def leave(self, request: Request) -> None:
        """Write the state for the next part of a long video, if there is one. Raises: OSError."""
        path = request.part.leave if request.part else None
        if path is not None and self.anchor is not None and self.goes_on:
            self.write(path)

    def write(self, path: Path) -> None:
        """Write frames, anchor and picture, atomically. Raises: OSError."""
        assert self.picture is not None  # frames have been shown
        assert self.anchor is not None  # ranks send it with their first frames
        arrays = {"frames": np.stack(self.frames), "anchor": self.anchor, "picture": self.picture}
        atomic.write(path, save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))

    def _read(self, path: Path, size: Size | None) -> None:
        try:
            found = load_file(path)
            frames, self.anchor, self.picture = found["frames"], found["anchor"], found["picture"]
        except (SafetensorError, OSError, KeyError) as error:
            raise BadInput(
                "The previous part's file cannot be read.", "Begin the video anew: delete its .parts folder."
            ) from error
        shape = self.picture.shape if size is None else (size.height, size.width, 3)
        if len(frames) > MOTION_FRAMES or frames.shape[1:] != shape or self.picture.shape != shape:
            raise BadInput(
                "What the part before left has another size.", "Begin the video anew with one size."
            )
        self.frames.extend(frames)
