"""The size of a video: how each engine fits a portrait's shape into the requested area."""

from __future__ import annotations

import math

from avatar.errors import BadInput
from avatar.geometry import SIDE_MULTIPLE, Size, output_size

SMALLEST = Size(SIDE_MULTIPLE, SIDE_MULTIPLE)
PREVIEW_LARGEST = Size(1280, 720)
PREVIEW_LONGEST_PX = 1280
PREVIEW_MAX_ENLARGEMENT = 2.0  # a small portrait gains no detail beyond this


def check_size(engine: str, size: Size) -> None:
    """Refuse an area that an engine cannot produce for any portrait. Raises: BadInput naming it."""
    if engine == "diffusion":
        output_size(size.width, size.height, size)
    if engine != "preview":
        return
    if size.area > PREVIEW_LARGEST.area:
        raise BadInput(
            f"The preview engine cannot make size {size}: {PREVIEW_LARGEST} is the largest.",
            f"Set size to {PREVIEW_LARGEST} or less, or choose a preset with the diffusion engine.",
        )
    if size.area < SMALLEST.area:
        raise BadInput(
            f"The preview engine cannot make size {size}: {SMALLEST} is the smallest.",
            'Set a larger size, for example "384*256".',
        )


def video_size(engine: str, width: int, height: int, size: Size | str) -> Size:
    """The size of the video of a portrait of width x height pixels; `size` is the requested area.

    Raises: BadInput for an area that the engine cannot produce, or that the portrait's shape does not fit.
    """
    area = Size.parse(size) if isinstance(size, str) else size
    check_size(engine, area)
    return preview_size(width, height, area) if engine == "preview" else output_size(width, height, area)


def size_from_larger(engine: str, width: int, height: int, size: Size | str) -> Size | None:
    """The size of the video of a larger portrait of the same shape; None where that would be no larger.

    Both engines bound how much a small portrait is enlarged. Raises: BadInput, see video_size.
    """
    area = Size.parse(size) if isinstance(size, str) else size
    own, times = video_size(engine, width, height, area), math.sqrt(area.area / (width * height))
    if times <= (PREVIEW_MAX_ENLARGEMENT if engine == "preview" else 1.0):
        return None
    enough = 2 * math.ceil(times)
    larger = video_size(engine, enough * width, enough * height, area)
    return larger if larger.area > own.area else None


def preview_size(width: int, height: int, size: Size) -> Size:
    """The preview's size: the portrait's aspect with even sides, and at most the area of `size`.

    The longer side is at most 1280, and a small portrait is enlarged to at most twice its size.
    """
    longest = PREVIEW_LONGEST_PX / max(width, height)
    scale = min(math.sqrt(size.area / (width * height)), longest, PREVIEW_MAX_ENLARGEMENT)
    return Size(max(2, int(width * scale) // 2 * 2), max(2, int(height * scale) // 2 * 2))
