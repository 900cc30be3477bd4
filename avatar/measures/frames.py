"""Read the frames of any video file, upright and in order, with their times."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import numpy as np

from avatar.errors import BadInput
from avatar.media.files import check_file, display_name

_GIB = 2**30
_LARGEST_BYTES = 64 * _GIB
_LONGEST_SIDE_PX = 8192
_READABLE = "Give a video, for example an .mp4 or .webm file."


def read_frames(video: Path, longest_px: int = 1280) -> Iterator[tuple[float, np.ndarray]]:
    """Yield (seconds, uint8 (H, W, 3) RGB) of each frame; sides above longest_px are scaled down.

    Seconds count from the file's beginning, as for the sound. Raises: BadInput.
    """
    name = display_name(video)
    check_file(video, name, _LARGEST_BYTES, "video")
    try:
        with av.open(str(video)) as container:
            stream = container.streams.video[0] if container.streams.video else None
            if stream is None or not stream.width or max(stream.width, stream.height) > _LONGEST_SIDE_PX:
                raise BadInput(f"{name} has no readable frames.", _READABLE)
            moves = {"mov", "matroska"}.isdisjoint(container.format.name.split(","))
            zero_s = (container.start_time or 0) / av.time_base if moves else 0.0
            for number, frame in enumerate(container.decode(stream)):
                rate = float(stream.average_rate or 25)
                time_s = number / rate if frame.time is None else frame.time - zero_s
                pixels = frame.to_ndarray(format="rgb24")
                if frame.rotation:
                    pixels = np.rot90(pixels, frame.rotation // 90)
                yield time_s, _bounded(np.ascontiguousarray(pixels), longest_px)
    except (av.FFmpegError, ValueError) as error:
        raise BadInput(f"{name} cannot be read as a video, or is damaged.", _READABLE) from error


def _bounded(pixels: np.ndarray, longest_px: int) -> np.ndarray:
    scale = longest_px / max(pixels.shape[:2])
    if scale >= 1:
        return pixels
    return cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
