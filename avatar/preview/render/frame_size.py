"""The video's frame size, and the portrait scaled to it."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from avatar.geometry import Size
from avatar.preview.face_detection import Face
from avatar.sizes import preview_size


def frame_size(width: int, height: int, limit: Size) -> tuple[int, int]:
    """Width and height of the video for a portrait of width x height; see sizes.preview_size."""
    size = preview_size(width, height, limit)
    return size.width, size.height


def framed(image: np.ndarray, face: Face, limit: Size) -> tuple[np.ndarray, Face]:
    """The portrait and its face at the video's size; see framed_with_all."""
    resized, (scaled,) = framed_with_all(image, [face], limit)
    return resized, scaled


def framed_with_all(
    image: np.ndarray, faces: Sequence[Face], limit: Size
) -> tuple[np.ndarray, tuple[Face, ...]]:
    """The portrait and its faces at the video's size. image: uint8 (H, W, 3) RGB.

    To make the sides even, up to two pixels may be cut off at the right and the bottom.
    """
    height, width = image.shape[:2]
    to_width, to_height = frame_size(width, height, limit)
    scale = max(to_width / width, to_height / height)
    size = (max(to_width, round(width * scale)), max(to_height, round(height * scale)))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    resized = cv2.resize(image, size, interpolation=interpolation)
    scaled = tuple(face.scaled(scale) for face in faces)
    return np.ascontiguousarray(resized[:to_height, :to_width]), scaled
