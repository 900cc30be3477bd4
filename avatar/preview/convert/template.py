"""Makes ../models/face_template.npy: a frontal, symmetric face mesh, for faces whose points a person places.

The mesh is that of the NASA portrait of Eileen Collins (public domain), averaged with its mirror image.
Usage: python -m avatar.preview.convert.template assets/portraits/astronaut.jpg
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.optimize import linear_sum_assignment

from avatar.preview.face import find_face
from avatar.preview.models import FACE_TEMPLATE
from avatar.preview.topology import (
    CHIN,
    FOREHEAD,
    LEFT_EYE_CORNERS,
    LOWER_LIP_INNER,
    RIGHT_EYE_CORNERS,
    UPPER_LIP_INNER,
)


def upright(landmarks: np.ndarray) -> np.ndarray:
    """The mesh (468, 3) turned level, its head turned to the front, in units of face height."""
    corners = landmarks[[LEFT_EYE_CORNERS[0], RIGHT_EYE_CORNERS[1]]]
    points = landmarks - corners.mean(axis=0)
    x = corners[1] - corners[0]
    x = x / np.linalg.norm(x)
    y = points[CHIN] - points[FOREHEAD]
    y = y - (y @ x) * x
    y = y / np.linalg.norm(y)
    points = points @ np.stack([x, y, np.cross(x, y)], axis=1)
    return points / np.linalg.norm(points[CHIN] - points[FOREHEAD])


def mirror_of_each(points: np.ndarray) -> np.ndarray:
    """The index of every point's mirror image (468,), found by matching the mesh with its own reflection."""
    flipped = points * [-1, 1, 1]
    distances = np.linalg.norm(points[:, None] - flipped[None], axis=-1)
    pairs = np.full(len(points), -1)
    for row in (UPPER_LIP_INNER, LOWER_LIP_INNER):
        pairs[list(row)] = row[::-1]
    free = np.flatnonzero(pairs < 0)
    rows, columns = linear_sum_assignment((distances + distances.T)[np.ix_(free, free)])
    pairs[free[rows]] = free[columns]
    if not np.array_equal(pairs[pairs], np.arange(len(points))):
        raise SystemExit("The mesh is too far from symmetric: points and mirror images do not pair up.")
    return pairs


def main(portrait: str) -> None:
    face = find_face(np.asarray(Image.open(portrait).convert("RGB"))).face
    if face is None:
        raise SystemExit(f"No face in {Path(portrait).name}.")
    points = upright(face.landmarks.astype(np.float64))
    points = (points + points[mirror_of_each(points)] * [-1, 1, 1]) / 2
    np.save(FACE_TEMPLATE, points.astype(np.float32))


if __name__ == "__main__":
    main(sys.argv[1])
