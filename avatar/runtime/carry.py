"""What a stretch of a video leaves for the next, as a file. No torch: the engine's process writes it, too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from avatar.errors import BadInput
from avatar.geometry import MOTION_FRAMES, Size
from avatar.media import atomic


@dataclass(frozen=True)
class Carry:
    """frames: the last 73 of the video so far, uint8 (T, H, W, 3), or all where there are fewer.

    anchor: 16 1 h w float32, the first latent frame that was generated. picture: the frame that was shown
    first, uint8 (H, W, 3).
    """

    frames: np.ndarray
    anchor: np.ndarray
    picture: np.ndarray

    @classmethod
    def read(cls, path: Path, size: Size) -> Carry:
        """size: the stream's. Raises: BadInput when it cannot be used."""
        try:
            found = load_file(path)
            carry = cls(found["frames"], found["anchor"], found["picture"])
        except (SafetensorError, OSError, KeyError) as error:
            raise BadInput(
                "What the part before left cannot be read.", "Begin the video anew: delete its .parts folder."
            ) from error
        shape = (size.height, size.width, 3)
        if (
            len(carry.frames) > MOTION_FRAMES
            or carry.frames.shape[1:] != shape
            or carry.picture.shape != shape
        ):
            raise BadInput(
                "What the part before left is of another size.", "Begin the video anew with one size."
            )
        return carry

    def write(self, path: Path) -> None:
        """Whole or not at all. Raises: OSError."""
        arrays = {"frames": self.frames, "anchor": self.anchor, "picture": self.picture}
        atomic.write(path, save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))
