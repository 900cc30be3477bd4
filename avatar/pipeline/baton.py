"""What one stretch of a video hands to the next: its last frames as motion, the anchor, the first picture.

From part to part of a long video by way of a file, and within a run from one rung of the ladder to the next.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from avatar.geometry import BLOCK_FRAMES, MOTION_FRAMES, VAE_SPACE_STRIDE, VAE_TIME_STRIDE, Size, num_blocks
from avatar.model.vae.vae import VideoVAE
from avatar.pipeline.denoise import Conditions
from avatar.pipeline.framing import LEVELS, resized, still
from avatar.request import Request
from avatar.runtime.carry import Carry

ANCHOR = slice(1, 2)  # of a picture repeated for five frames: the first latent frame that stands for four


@dataclass
class Baton:
    """Taken from the stretch before, if there is one, and carried through this one.

    recent: the last 73 frames of the video so far, uint8 (H, W, 3) each, in the stream's size; before the
    first there is the portrait. anchor: 16 1 h w float32, the first latent frame that was generated, None
    before. picture: the frame that was shown first, uint8 (H, W, 3), None before. goes_on: there is a stretch
    before. first_block: of the whole speech's; num_blocks from it on. next_frame: of the speech, the next to
    be shown; frames_left: to be made of this part.
    """

    recent: deque[np.ndarray]
    anchor: Tensor | None
    picture: np.ndarray | None
    goes_on: bool
    first_block: int
    num_blocks: int
    next_frame: int
    frames_left: int

    @classmethod
    def take(cls, request: Request, size: Size) -> Baton:
        """Raises: BadInput when the file that the part before left cannot be used."""
        part, first, wanted = request.part, request.first_frame, request.num_frames
        recent = deque([still(request.portrait, size)] * MOTION_FRAMES, MOTION_FRAMES)
        if part is None or part.carry is None:
            return cls(recent, None, None, False, _block(first), num_blocks(wanted), first, wanted)
        carry = Carry.read(part.carry, size)
        recent.extend(carry.frames)
        anchor, count = torch.from_numpy(carry.anchor), -(-wanted // BLOCK_FRAMES)
        return cls(recent, anchor, carry.picture, True, _block(first), count, first, wanted)

    @property
    def next_block(self) -> int:
        """The first block, of the whole speech's, of which nothing was shown yet."""
        return _block(self.next_frame)

    def go_on(self) -> None:
        """Begin another stretch behind what was shown; what was made and not shown is made again."""
        if self.next_block > self.first_block:
            self.goes_on = True
        if self.goes_on:
            self.first_block, self.num_blocks = self.next_block, -(-self.frames_left // BLOCK_FRAMES)
        else:
            self.anchor = None

    def conditions(self, conditions: Conditions, size: Size, vae: VideoVAE) -> Conditions:
        """The conditions with the motion of the stretch before, at the model's size."""
        if not self.goes_on:
            return conditions
        return replace(conditions, motion=vae.encode(_video(resized(np.stack(self.recent), size)))[0])

    def anchor_for(self, size: Size, vae: VideoVAE) -> Tensor | None:
        """The anchor at the model's size; where that has changed, the first picture, encoded anew.

        The anchor is a generated latent, which stands for four frames: so the picture is encoded as five, and
        the second latent frame is taken.
        """
        latent = (size.height // VAE_SPACE_STRIDE, size.width // VAE_SPACE_STRIDE)
        if self.anchor is None or self.anchor.shape[2:] == latent:
            return self.anchor
        assert self.picture is not None  # it was shown before any other size was taken
        standing = _video(resized(self.picture[None], size))
        return vae.encode_still(standing, 1 + VAE_TIME_STRIDE)[0][:, ANCHOR]

    def pass_latents(self, block: Tensor) -> None:
        """A block has been generated."""
        if self.anchor is None:
            self.anchor = block[:, :1].float().cpu().contiguous()

    def pass_frames(self, frames: np.ndarray) -> np.ndarray:
        """These frames, uint8 (T, H, W, 3), of the stream's size, have been made; returns them."""
        if self.picture is None:
            self.picture = frames[0].copy()
        self.next_frame += len(frames)
        self.frames_left -= len(frames)
        self.recent.extend(frames)
        return frames

    def leave(self, request: Request) -> None:
        """Put it where the next part will look for it, if there is one. Raises: OSError."""
        path = request.part.leave if request.part else None
        if path is None or self.anchor is None or self.picture is None:
            return
        Carry(np.stack(self.recent), self.anchor.numpy(), self.picture).write(path)


def _block(frame: int) -> int:
    """The first block, of the whole speech's, that begins at a frame of the speech or later."""
    return -(-frame // BLOCK_FRAMES)


def _video(frames: np.ndarray) -> Tensor:
    """uint8 T H W 3 as the VAE's encoder reads it, 1 3 T H W."""
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(3, 0, 1, 2)
    return pixels.float().div(LEVELS).sub(1.0)[None]
