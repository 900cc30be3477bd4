"""Portraits: any common picture file → upright 8-bit RGB of bounded size, or a BadInput that says why not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from avatar.media.limits import Limits

WORKING_SIDE_PX = 2048  # longest side of what engines are given


@dataclass(frozen=True)
class Portrait:
    """A picture ready for use. pixels: uint8 (H, W, 3) RGB sRGB, upright; notices: what had to be changed, for the user."""

    pixels: np.ndarray
    notices: tuple[str, ...] = ()


def open_portrait(path: Path, *, name: str | None = None, limits: Limits = Limits()) -> Portrait:
    """Read a PNG, JPEG, WebP, AVIF or HEIC. name: what messages call the file. Raises: BadInput."""
    raise NotImplementedError


def read_portrait(path: Path) -> np.ndarray:
    """The pixels of a portrait, uint8 (H, W, 3) RGB, longest side ≤ WORKING_SIDE_PX. Raises: BadInput."""
    return open_portrait(path).pixels
