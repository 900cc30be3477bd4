"""What one part of a long video hands to the next: its last frames as motion, and the anchor."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from avatar.diffusion.conditions import prepare_portrait
from avatar.diffusion.denoise import Conditions
from avatar.errors import BadInput
from avatar.geometry import BLOCK_FRAMES, MOTION_FRAMES, Size, num_blocks
from avatar.media import durable
from avatar.models.vae import VideoVAE
from avatar.request import Request

_LEVELS = 127.5  # of a pixel from 0 to 1


@dataclass
class Baton:
    """Taken from the part before, if there is one, and carried through this part.

    frames: the last 73 of the video so far, uint8 (73, H, W, 3); before the first there is the portrait.
    anchor: 16 1 h w float32, the first latent frame that was generated, None before. goes_on: there is a part
    before. first_block: of the whole speech's; num_blocks from it on. frames_left: to be made of this part.
    """

    frames: np.ndarray
    anchor: Tensor | None
    goes_on: bool
    first_block: int
    num_blocks: int
    frames_left: int

    @classmethod
    def take(cls, request: Request, size: Size) -> Baton:
        """Raises: BadInput when the file that the part before left cannot be used."""
        part = request.part
        first_block, wanted = -(-request.first_frame // BLOCK_FRAMES), request.num_frames
        if part is None or part.carry is None:
            still = _still(request.portrait, size)
            return cls(still, None, False, first_block, num_blocks(wanted), wanted)
        frames, anchor = _read(part.carry, size)
        return cls(frames, anchor, True, first_block, -(-wanted // BLOCK_FRAMES), wanted)

    def conditions(self, conditions: Conditions, vae: VideoVAE) -> Conditions:
        """The conditions with the motion of the part before."""
        if not self.goes_on:
            return conditions
        video = torch.from_numpy(self.frames).permute(3, 0, 1, 2).float().div(_LEVELS).sub(1.0)
        return replace(conditions, motion=vae.encode(video[None])[0])

    def pass_latents(self, block: Tensor) -> None:
        """A block has been generated."""
        if self.anchor is None:
            self.anchor = block[:, :1].float().cpu().contiguous()

    def pass_frames(self, frames: np.ndarray) -> np.ndarray:
        """These frames, uint8 (T, H, W, 3), have been made; returns them."""
        self.frames_left -= len(frames)
        self.frames = np.concatenate([self.frames, frames])[-MOTION_FRAMES:]
        return frames

    def leave(self, request: Request) -> None:
        """Put it where the next part will look for it, if there is one. Raises: OSError."""
        path = request.part.leave if request.part else None
        if path is None or self.anchor is None:
            return
        tensors = {"frames": torch.from_numpy(np.ascontiguousarray(self.frames)), "anchor": self.anchor}
        durable.write(path, save(tensors))


def _still(portrait: Path, size: Size) -> np.ndarray:
    """The portrait as it stands still, uint8 (73, H, W, 3)."""
    pixels = prepare_portrait(portrait, size).add(1.0).mul(_LEVELS).round().to(torch.uint8)
    return np.broadcast_to(pixels.permute(1, 2, 0).numpy(), (MOTION_FRAMES, size.height, size.width, 3))


def _read(path: Path, size: Size) -> tuple[np.ndarray, Tensor]:
    try:
        with safe_open(path, "pt") as file:
            frames, anchor = file.get_tensor("frames").numpy(), file.get_tensor("anchor")
    except (SafetensorError, OSError) as error:
        raise BadInput(
            "What the part before left cannot be read.", "Begin the video anew: delete its .parts folder."
        ) from error
    if frames.shape != (MOTION_FRAMES, size.height, size.width, 3):
        raise BadInput("What the part before left is of another size.", "Begin the video anew with one size.")
    return frames, anchor
