"""Finding a portrait's faces, and saying how sure we are of each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np

from avatar.preview.face_candidates import SURE_SCORE, Candidate, candidates
from avatar.preview.landmarks import (
    CROP_MARGIN,
    EYE_OUTLINE_COUNT,
    LEFT_EYE,
    LIP_OUTLINE_COUNT,
    LIPS,
    RIGHT_EYE,
    Crop,
    Mesh,
    crop_of_candidate,
    crop_of_points,
    landmarks,
)
from avatar.preview.topology import (
    CHIN,
    FACE_OVAL,
    FOREHEAD,
    INNER_LIP_BOTTOM,
    INNER_LIP_TOP,
    LEFT_EYE_CORNERS,
    LEFT_EYE_LOWER,
    LEFT_EYE_UPPER,
    MOUTH_LEFT,
    MOUTH_RIGHT,
    RIGHT_EYE_CORNERS,
    RIGHT_EYE_LOWER,
    RIGHT_EYE_UPPER,
)

Verdict = Literal["face", "weak", "none"]

# Landmark jitter over face height, measured: photographs 0.002-0.008; paintings, statues, drawings to 0.012;
# cats, rockets and cups from 0.020. In 460 scraps of paintings and scenery, all that was accepted was a face.
SURE_JITTER = 0.012
WEAK_JITTER = 0.020
HIDDEN_EYES = 0.020  # base and refined eyes further apart than this over face height: goggles
BLANK_EYES = (
    0.15  # light and dark in the eyes differ by less than this part of the face's brightness: dark glasses
)
MIN_PRESENCE = 0.8
MAX_CANDIDATES = 12
SMALLEST_PX = 16  # height of a face in the image that is searched
SAME_FACE = 0.4  # faces whose middles are nearer than this, in heights of the larger, are one
REFINEMENTS = 3
SEARCH_PX = 1536  # longer side of the image that is searched

# Shifts (dx, dy in face boxes), scale, turn (radians) and mirroring of the crop: landmarks must stay put.
PERTURBATIONS = (
    (0.0, 0.0, 1.0, 0.0, False),
    (0.06, 0.0, 1.0, 0.0, True),
    (-0.06, 0.0, 1.0, 0.0, False),
    (0.0, 0.06, 1.08, 0.08, True),
    (0.0, -0.06, 0.92, -0.08, False),
)
STEADY_POINTS = (
    *(MOUTH_LEFT, MOUTH_RIGHT, INNER_LIP_TOP, INNER_LIP_BOTTOM),
    *(*LEFT_EYE_CORNERS, *RIGHT_EYE_CORNERS),
)
MIRRORED_POINTS = (
    *(MOUTH_RIGHT, MOUTH_LEFT, INNER_LIP_TOP, INNER_LIP_BOTTOM),
    *(*reversed(RIGHT_EYE_CORNERS), *reversed(LEFT_EYE_CORNERS)),
)


@dataclass(frozen=True)
class Face:
    """Where a face's parts are in a portrait.

    landmarks: float32 (468, 3), image pixels (x right, y down), z in pixels too, smaller is nearer;
    iris: float32 (2, 5, 2) image pixels, image-left eye first, centre then four edge points; None if unknown;
    origin: "model", or "points" where a person placed them;
    jitter: how far landmarks move under small changes of the crop, over face height; 0 for placed points;
    has_eyes: False where eyes are hidden or unknown: then there are no blinks and no gaze;
    lip_doubt: how far the model's two outputs for the lips are apart, over face height; 0 for placed points.
    """

    landmarks: np.ndarray
    iris: np.ndarray | None
    origin: Literal["model", "points"]
    jitter: float
    has_eyes: bool
    lip_doubt: float = 0.0

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom in pixels, from forehead to chin; may lie partly outside the image."""
        (left, top), (right, bottom) = self.landmarks[:, :2].min(axis=0), self.landmarks[:, :2].max(axis=0)
        return float(left), float(top), float(right), float(bottom)

    def scaled(self, factor: float, shift: tuple[float, float] = (0.0, 0.0)) -> Face:
        """The same face after the image is scaled by `factor` and then moved by `shift` pixels (x, y)."""
        move = np.array(shift, np.float32)
        points = self.landmarks * np.float32(factor)
        points[:, :2] += move
        iris = None if self.iris is None else self.iris * np.float32(factor) + move
        return replace(self, landmarks=points, iris=iris)


@dataclass(frozen=True)
class Detection:
    """What was found: "face"; "weak", which a person should confirm; or "none", with no face.

    jitter is that of the best candidate, even a refused one; None where nothing resembled a face at all.
    """

    verdict: Verdict
    face: Face | None
    jitter: float | None


@dataclass(frozen=True)
class Faces:
    """The faces of an image that can be moved, none of verdict "none", from left to right.

    main: the index of the largest, doubt counted against it; jitter: the best candidate's, see Detection.
    """

    found: tuple[Detection, ...]
    main: int
    jitter: float | None

    @property
    def faces(self) -> tuple[Face, ...]:
        """Where their parts are, in the same order."""
        return tuple(one.face for one in self.found if one.face is not None)

    def at(self, box: tuple[float, float, float, float]) -> int | None:
        """The index of the face that a box (left, top, right, bottom; pixels) was drawn around."""
        x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        nearest: tuple[float, int] | None = None
        for index, one in enumerate(self.found):
            assert one.face is not None, "Faces holds no other"
            left, top, right, bottom = one.face.box
            far = float(np.hypot(x - (left + right) / 2, y - (top + bottom) / 2)) / (bottom - top)
            if far <= 1 / 2 and (nearest is None or far < nearest[0]):
                nearest = far, index
        return None if nearest is None else nearest[1]


def find_face(image: np.ndarray) -> Detection:
    """The portrait's main face. image: uint8 (H, W, 3) RGB."""
    faces = find_faces(image)
    return faces.found[faces.main] if faces.found else Detection("none", None, faces.jitter)


def find_faces(image: np.ndarray) -> Faces:
    """Every face of a picture, up to MAX_CANDIDATES. image: uint8 (H, W, 3) RGB.

    Source: thresholds measured on photographs, paintings, drawings and animals.
    """
    scale = min(1.0, SEARCH_PX / max(image.shape[:2]))
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    image = np.ascontiguousarray(image)
    measured = (_measured(image, c) for c in candidates(image)[:MAX_CANDIDATES])
    looked_at = sorted((one for one in measured if one is not None), key=lambda one: one.rank, reverse=True)
    kept: list[_Measured] = []
    sure = [one for one in looked_at if one.is_plausible]
    for one in sure or [one for one in looked_at[:1] if one.verdict != "none"]:
        if not any(one.is_same(other) for other in kept):
            kept.append(one)
    jitter = looked_at[0].jitter if looked_at else None
    in_order = sorted(kept, key=lambda one: float(one.middle[0]))
    found = tuple(Detection(one.verdict, _face(image, one, scale), one.jitter) for one in in_order)
    main = max(range(len(in_order)), key=lambda index: in_order[index].merit, default=0)
    return Faces(found, main, jitter)


def _face(image: np.ndarray, one: _Measured, scale: float) -> Face:
    """The face in the pixels of the picture, of which image is `scale` times as large a copy."""
    mesh = one.mesh
    face = Face(
        landmarks=mesh.points.astype(np.float32),
        iris=mesh.iris.astype(np.float32),
        origin="model",
        jitter=one.jitter,
        has_eyes=one.eye_disagreement <= HIDDEN_EYES and _eye_contrast(image, mesh.points) >= BLANK_EYES,
        lip_doubt=one.lip_disagreement,
    )
    return face.scaled(1 / scale)


@dataclass(frozen=True)
class _Measured:
    """A mesh with its self-consistency, each figure over face height."""

    score: float  # the detector's
    mesh: Mesh
    jitter: float
    lip_disagreement: float
    eye_disagreement: float

    @property
    def verdict(self) -> Verdict:
        if self.jitter <= SURE_JITTER:
            return "face"
        return "weak" if self.jitter <= WEAK_JITTER else "none"

    @property
    def is_plausible(self) -> bool:
        """Whether it is surely a face that may be meant; badges and folds of cloth look like weak ones."""
        sure = self.verdict == "face" or (self.verdict == "weak" and self.score > SURE_SCORE)
        return sure and self.height >= SMALLEST_PX

    @property
    def height(self) -> float:
        return float(np.ptp(self.mesh.points[:, 1]))

    @property
    def middle(self) -> np.ndarray:
        return self.mesh.points[:, :2].mean(axis=0)

    @property
    def merit(self) -> float:
        """How large it is, in pixels, less what is doubtful of it."""
        doubt = 8 * self.lip_disagreement + 4 * self.eye_disagreement + 4 * self.jitter
        return self.mesh.presence * self.height * float(np.exp(-doubt))

    @property
    def rank(self) -> tuple[bool, float]:
        return self.verdict != "none", self.merit

    def is_same(self, other: _Measured) -> bool:
        """Whether both are of one face."""
        apart = float(np.linalg.norm(self.middle - other.middle))
        return apart < SAME_FACE * max(self.height, other.height)


def _measured(image: np.ndarray, candidate: Candidate) -> _Measured | None:
    """Settles on the candidate's face, then looks again through perturbed crops; None where no face is."""
    mesh = landmarks(image, crop_of_candidate(candidate))
    for _ in range(REFINEMENTS):
        mesh = landmarks(image, crop_of_points(mesh.points))
    if mesh.presence < MIN_PRESENCE:
        return None
    height = float(np.linalg.norm(mesh.points[FOREHEAD, :2] - mesh.points[CHIN, :2])) + 1e-6
    crop = crop_of_points(mesh.points)
    looks = []
    for dx, dy, scale, turn, mirrored in PERTURBATIONS:
        centre = crop.centre + np.array([dx, dy]) * crop.side_px / CROP_MARGIN
        look = landmarks(image, Crop(centre, crop.side_px * scale, crop.angle + turn, mirrored))
        looks.append(look.points[list(MIRRORED_POINTS if mirrored else STEADY_POINTS), :2])
    spread = np.linalg.norm(np.array(looks) - np.mean(looks, axis=0), axis=-1).mean()
    eyes = list(LEFT_EYE[:EYE_OUTLINE_COUNT] + RIGHT_EYE[:EYE_OUTLINE_COUNT])
    lips = list(LIPS[:LIP_OUTLINE_COUNT])

    def disagreement(rows: list[int]) -> float:
        return float(np.abs(mesh.points[rows, :2] - mesh.base[rows]).mean() / height)

    return _Measured(candidate.score, mesh, float(spread) / height, disagreement(lips), disagreement(eyes))


def _eye_contrast(image: np.ndarray, points: np.ndarray) -> float:
    """Light minus dark (90th, 10th percentile) inside the clearer eye, over the face's mean brightness."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)

    def inside(outline: tuple[int, ...]) -> np.ndarray:
        mask = np.zeros(grey.shape, np.uint8)
        cv2.fillPoly(mask, [points[list(outline), :2].round().astype(np.int32)], 1)
        return grey[mask > 0].astype(np.float64)

    eyes = [
        inside(LEFT_EYE_UPPER + LEFT_EYE_LOWER[::-1]),
        inside(RIGHT_EYE_UPPER + RIGHT_EYE_LOWER[::-1]),
    ]
    spans = [float(np.subtract(*np.percentile(eye, (90, 10)))) for eye in eyes if eye.size]
    return max(spans, default=0.0) / max(float(inside(FACE_OVAL).mean()), 1.0)
