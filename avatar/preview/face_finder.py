"""The preview's face detector as intake uses it; see media.face_choice.FaceFinder.

OpenCV and the face models are imported when a face is looked for: most portraits are taken as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from avatar.events import Notice
from avatar.media.face_choice import FaceBox, FoundFaces, Point

if TYPE_CHECKING:
    from avatar.preview.face_detection import Face, Faces


class Finder:
    """Finds faces by the preview engine's models."""

    def faces(self, pixels: np.ndarray) -> FoundFaces:
        """See FaceFinder."""
        from avatar.preview.recent import known_faces

        return boxes(known_faces(pixels), pixels)

    def placed(self, points: Mapping[str, Point], width: int, height: int) -> FaceBox:
        """See FaceFinder. Raises: BadInput."""
        return _box(_from_points(points, width, height), width, height)

    def cut_off(
        self, pixels: np.ndarray, points: Mapping[str, Point] | None, box: FaceBox | None, name: str
    ) -> list[Notice]:
        """See FaceFinder. Raises: BadInput."""
        from avatar.preview.portrait_notices import cut_off
        from avatar.preview.recent import known_faces

        height, width = pixels.shape[:2]
        if points:
            return cut_off(pixels, _from_points(points, width, height), name)
        faces = known_faces(pixels)
        index: int | None = faces.main if faces.found else None
        if box is not None:
            index = faces.at((box.left * width, box.top * height, box.right * width, box.bottom * height))
        face = None if index is None else faces.found[index].face
        return [] if face is None else cut_off(pixels, face, name)


def boxes(faces: Faces, pixels: np.ndarray) -> FoundFaces:
    """Faces as boxes in fractions of their picture, uint8 (H, W, 3) RGB."""
    height, width = pixels.shape[:2]
    found = [_box(one.face, width, height) for one in faces.found if one.face is not None]
    return FoundFaces(tuple(found), faces.main)


def _from_points(points: Mapping[str, Point], width: int, height: int) -> Face:
    from avatar.preview.mesh_from_points import face_from_points
    from avatar.preview.points import FacePoints

    return face_from_points(FacePoints.parse(points), width, height)


def _box(face: Face, width: int, height: int) -> FaceBox:
    left, top, right, bottom = face.box
    return FaceBox(left / width, top / height, right / width, bottom / height)
