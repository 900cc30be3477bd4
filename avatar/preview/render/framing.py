"""The frame: which size the video has, and the portrait brought to it."""

from __future__ import annotations

import math

import cv2
import numpy as np

from avatar.geometry import Size
from avatar.preview.face import Face

LONGEST_PX = 1280
LARGEST_AREA = 1280 * 720
MAX_ENLARGEMENT = 2.0  # a small portrait gains no detail beyond this


def frame_size(width: int, height: int, limit: Size) -> tuple[int, int]:
    """Width and height of the video for a portrait of width x height: its aspect, even numbers.

    The area is at most that of `limit` and of 1280 x 720, the longer side at most 1280; a small portrait is
    enlarged to at most twice its size.
    """
    area = min(limit.width * limit.height, LARGEST_AREA)
    scale = min(math.sqrt(area / (width * height)), LONGEST_PX / max(width, height), MAX_ENLARGEMENT)
    return max(2, int(width * scale) // 2 * 2), max(2, int(height * scale) // 2 * 2)


def framed(image: np.ndarray, face: Face, limit: Size) -> tuple[np.ndarray, Face]:
    """The portrait and its face at the video's size. image: uint8 (H, W, 3) RGB.

    Making the sides even may cut up to two pixels off the right and the bottom.
    """
    height, width = image.shape[:2]
    to_width, to_height = frame_size(width, height, limit)
    scale = max(to_width / width, to_height / height)
    size = (max(to_width, round(width * scale)), max(to_height, round(height * scale)))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    resized = cv2.resize(image, size, interpolation=interpolation)
    return np.ascontiguousarray(resized[:to_height, :to_width]), face.scaled(scale)
