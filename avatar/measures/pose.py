"""Split a face's landmarks into the head's pose and a frontal face, so that head motion is not lip motion.

Source: Umeyama, "Least-squares estimation of transformation parameters between two point patterns" (1991).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from avatar.preview.models import FACE_TEMPLATE
from avatar.preview.topology import (
    FACE_OVAL,
    FOREHEAD,
    LEFT_EYE_CORNERS,
    NOSE_BASE,
    NOSE_TIP,
    RIGHT_EYE_CORNERS,
)

# Points that speech and expression hardly move: the upper oval, the nose and the eye corners.
_NOSE = (168, 6, 197, 195, 5, 4, 98, 327)
STEADY = (
    *(FOREHEAD, NOSE_TIP, NOSE_BASE, *LEFT_EYE_CORNERS, *RIGHT_EYE_CORNERS, *_NOSE),
    *(*FACE_OVAL[:9], *FACE_OVAL[-8:]),
)
_ROWS = list(STEADY)


@dataclass(frozen=True)
class HeadPose:
    """A head's pose. yaw, pitch, roll: degrees; place: (x, y) pixels; face_px: the face's height in pixels.

    Positive yaw turns the nose to the image's right, positive pitch turns it down, positive roll clockwise.
    """

    yaw: float
    pitch: float
    roll: float
    place: tuple[float, float]
    face_px: float


def split(points: np.ndarray) -> tuple[HeadPose, np.ndarray]:
    """The pose of landmarks (468, 3) in pixels, and the face from the front, (468, 3) in face heights."""
    steady, model = points[_ROWS].astype(np.float64), _template()[_ROWS]
    centre, origin = steady.mean(0), model.mean(0)
    left, sizes, right = np.linalg.svd((model - origin).T @ (steady - centre))
    handed = np.array([1.0, 1.0, np.sign(np.linalg.det(left @ right))])
    turn = (left * handed) @ right  # multiplied from the right: rows of the template to rows of the head
    scale = float((sizes * handed).sum() / ((model - origin) ** 2).sum())
    unturned = (points - centre) @ turn.T / scale + origin
    # As matrices on columns: roll · yaw · pitch, with pitch applied first and roll last.
    yaw, pitch = np.arcsin(np.clip(turn[0, 2], -1, 1)), np.arctan2(turn[1, 2], turn[2, 2])
    roll = np.arctan2(turn[0, 1], turn[0, 0])
    degrees = [float(angle) for angle in np.degrees([yaw, pitch, roll])]
    place = (float(centre[0]), float(centre[1]))
    return HeadPose(degrees[0], degrees[1], degrees[2], place, scale), unturned


@cache
def _template() -> np.ndarray:
    return np.load(FACE_TEMPLATE).astype(np.float64)
