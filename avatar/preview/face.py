"""Finding the portrait's face, and saying how sure we are of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np

from avatar.preview.detect import candidates
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
MAX_CANDIDATES = 6
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


def find_face(image: np.ndarray) -> Detection:
    """The portrait's best face: the surest verdict first, then the largest and steadiest.

    image: uint8 (H, W, 3) RGB.
    Source: thresholds measured on photographs, paintings, drawings and animals.
    """
    scale = min(1.0, SEARCH_PX / max(image.shape[:2]))
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    image = np.ascontiguousarray(image)
    found = [_measured(image, crop_of_candidate(c)) for c in candidates(image)[:MAX_CANDIDATES]]
    found = [f for f in found if f.mesh.presence >= MIN_PRESENCE]
    if not found:
        return Detection("none", None, None)
    best = max(found, key=lambda f: f.rank)
    if best.verdict == "none":
        return Detection("none", None, best.jitter)
    mesh = best.mesh
    face = Face(
        landmarks=mesh.points.astype(np.float32),
        iris=mesh.iris.astype(np.float32),
        origin="model",
        jitter=best.jitter,
        has_eyes=best.eye_disagreement <= HIDDEN_EYES and _eye_contrast(image, mesh.points) >= BLANK_EYES,
        lip_doubt=best.lip_disagreement,
    )
    return Detection(best.verdict, face.scaled(1 / scale), best.jitter)


@dataclass(frozen=True)
class _Measured:
    """A mesh with its self-consistency, each figure over face height."""

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
    def rank(self) -> tuple[int, float]:
        height = float(np.ptp(self.mesh.points[:, 1]))
        doubt = 8 * self.lip_disagreement + 4 * self.eye_disagreement + 4 * self.jitter
        merit = self.mesh.presence * height * float(np.exp(-doubt))
        return ("none", "weak", "face").index(self.verdict), merit


def _measured(image: np.ndarray, crop: Crop) -> _Measured:
    """Settles on the face in `crop`, then looks again through perturbed crops."""
    mesh = landmarks(image, crop)
    for _ in range(REFINEMENTS):
        mesh = landmarks(image, crop_of_points(mesh.points))
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

    return _Measured(mesh, float(spread) / height, disagreement(lips), disagreement(eyes))


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
