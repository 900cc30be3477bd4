"""The video's size, and the portrait brought to it."""

from __future__ import annotations

import numpy as np
import pytest

from avatar.geometry import Size
from avatar.preview.face_detection import Face
from avatar.preview.render import frame_size, framed


@pytest.mark.parametrize(
    ("width", "height", "limit", "expected"),
    [
        (1000, 1000, "512*512", (512, 512)),
        (256, 256, "512*512", (512, 512)),
        (200, 200, "512*512", (400, 400)),
        (1920, 1080, "1280*720", (1280, 720)),
        (1080, 1920, "1280*720", (720, 1280)),
        (3000, 3000, "1280*720", (960, 960)),
        (4000, 4000, "1280*720", (960, 960)),
        (4000, 1000, "1280*720", (1280, 320)),
        (1001, 751, "704*384", (600, 450)),
    ],
)
def test_the_frame_keeps_the_portraits_aspect(
    width: int, height: int, limit: str, expected: tuple[int, int]
) -> None:
    assert frame_size(width, height, Size.parse(limit)) == expected


@pytest.mark.parametrize(("width", "height"), [(640, 480), (333, 501), (97, 211)])
def test_framing_takes_the_face_along(width: int, height: int) -> None:
    image = np.full((height, width, 3), 200, np.uint8)
    image[height // 2 - 2 : height // 2 + 3, width // 3 - 2 : width // 3 + 3] = 0
    points = np.zeros((468, 3), np.float32)
    points[:, :2] = (width // 3, height // 2)
    frame, face = framed(image, Face(points, None, "points", 0.0, False), Size(512, 512))
    assert frame.shape[0] % 2 == frame.shape[1] % 2 == 0
    assert frame.shape[1] / frame.shape[0] == pytest.approx(width / height, rel=0.02)
    y, x = np.argwhere(frame[..., 0] < 60).mean(axis=0)
    assert face.landmarks[0, :2] == pytest.approx((x, y), abs=1.5)
