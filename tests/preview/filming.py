"""Filming shipped portraits with shipped speech, and reading the mouth back out of the frames."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

from avatar.geometry import Size
from avatar.preview import topology as at
from avatar.preview.animate import animate
from avatar.preview.face_detection import Face, find_face
from avatar.preview.landmarks import crop_of_points, landmarks
from avatar.preview.mesh_from_points import face_from_points
from avatar.preview.points import load_sidecar
from avatar.preview.pose import Articulation, Pose
from avatar.preview.render import Renderer, framed
from tests.preview.pictures import PORTRAITS, portrait
from tests.preview.truth import Clip

SIZE = Size(512, 512)


@cache
def framed_portrait(name: str) -> tuple[np.ndarray, Face]:
    """A shipped portrait at the video's size and its face: from its sidecar's points, else found."""
    image = portrait(name)
    points = load_sidecar(PORTRAITS / f"{name}.png")
    face = face_from_points(points, image.shape[1], image.shape[0]) if points else find_face(image).face
    assert face is not None
    return framed(image, face, SIZE)


@cache
def renderer(name: str) -> Renderer:
    """The renderer of a shipped portrait."""
    return Renderer(*framed_portrait(name))


def film(name: str, clip: Clip, num_frames: int | None = None, seed: int = 0) -> Iterator[Shot]:
    """The clip spoken by the portrait, frame by frame."""
    for articulation, pose in animate(clip.sentence.listen, num_frames or clip.num_frames, seed=seed):
        yield Shot(renderer(name).frame(articulation, pose), articulation, pose)


@dataclass(frozen=True)
class Shot:
    """One frame, uint8 (H, W, 3), and what drove it."""

    frame: np.ndarray
    articulation: Articulation
    pose: Pose


def look(frame: np.ndarray, face: Face) -> np.ndarray:
    """Landmarks (468, 2) px found in a frame, near where the portrait's face is."""
    return landmarks(frame, crop_of_points(face.landmarks)).points[:, :2]


def inner_gap(points: np.ndarray) -> float:
    """Distance of the inner lips, in face heights."""
    height = np.linalg.norm(points[at.FOREHEAD] - points[at.CHIN])
    return float(np.linalg.norm(points[at.INNER_LIP_TOP] - points[at.INNER_LIP_BOTTOM]) / height)


def eye_opening(points: np.ndarray, corners: tuple[int, int], upper: int, lower: int) -> float:
    """Distance of the lids over the eye's width."""
    return float(
        np.linalg.norm(points[upper] - points[lower])
        / np.linalg.norm(points[corners[0]] - points[corners[1]])
    )
