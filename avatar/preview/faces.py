"""The preview's face detector as intake uses it; see media.faces.FaceFinder."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from avatar.media.faces import FaceBox, FoundFaces, Point
from avatar.preview.face import Face, Faces, find_faces
from avatar.preview.placed import face_from_points
from avatar.preview.points import FacePoints


class Finder:
    """Finds faces by the preview engine's models."""

    def faces(self, pixels: np.ndarray) -> FoundFaces:
        """See FaceFinder."""
        return boxes(find_faces(pixels), pixels)

    def placed(self, points: Mapping[str, Point], width: int, height: int) -> FaceBox:
        """See FaceFinder. Raises: BadInput."""
        listed = {name: list(point) for name, point in points.items()}
        return _box(face_from_points(FacePoints.parse(listed), width, height), width, height)


def boxes(faces: Faces, pixels: np.ndarray) -> FoundFaces:
    """Faces as boxes in fractions of their picture, uint8 (H, W, 3) RGB."""
    height, width = pixels.shape[:2]
    found = [_box(one.face, width, height) for one in faces.found if one.face is not None]
    return FoundFaces(tuple(found), faces.main)


def _box(face: Face, width: int, height: int) -> FaceBox:
    left, top, right, bottom = face.box
    return FaceBox(left / width, top / height, right / width, bottom / height)
