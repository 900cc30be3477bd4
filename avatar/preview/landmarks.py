"""Detect 468 face landmarks and the irises in one crop of an image, with MediaPipe's attention mesh."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from avatar.preview.face_candidates import Candidate
from avatar.preview.models import session
from avatar.preview.topology import LEFT_EYE_CORNERS, RIGHT_EYE_CORNERS

MODEL = "face_landmark_with_attention"
CROP_PX = 192
CROP_MARGIN = 1.5  # crop side, relative to the longer side of the face's box

# The rows of the refined outputs, as mesh indices.
LIPS = (
    61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 185, 40, 39, 37, 0, 267, 269, 270, 409,
    78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 191, 80, 81, 82, 13, 312, 311, 310, 415,
    76, 77, 90, 180, 85, 16, 315, 404, 320, 307, 306, 184, 74, 73, 72, 11, 302, 303, 304, 408,
    62, 96, 89, 179, 86, 15, 316, 403, 319, 325, 292, 183, 42, 41, 38, 12, 268, 271, 272, 407,
)  # fmt: skip
LEFT_EYE = (
    33, 7, 163, 144, 145, 153, 154, 155, 133, 246, 161, 160, 159, 158, 157, 173, 130, 25, 110, 24,
    23, 22, 26, 112, 243, 247, 30, 29, 27, 28, 56, 190, 226, 31, 228, 229, 230, 231, 232, 233, 244,
    113, 225, 224, 223, 222, 221, 189, 35, 124, 46, 53, 52, 65, 143, 111, 117, 118, 119, 120, 121,
    128, 245, 156, 70, 63, 105, 66, 107, 55, 193,
)  # fmt: skip
RIGHT_EYE = (
    263, 249, 390, 373, 374, 380, 381, 382, 362, 466, 388, 387, 386, 385, 384, 398, 359, 255, 339,
    254, 253, 252, 256, 341, 463, 467, 260, 259, 257, 258, 286, 414, 446, 261, 448, 449, 450, 451,
    452, 453, 464, 342, 445, 444, 443, 442, 441, 413, 265, 353, 276, 283, 282, 295, 372, 340, 346,
    347, 348, 349, 350, 357, 465, 383, 300, 293, 334, 296, 336, 285, 417,
)  # fmt: skip
EYE_OUTLINE_COUNT = 16  # the first rows of an eye are its outline
LIP_OUTLINE_COUNT = 40  # the first rows of the lips are their outer and inner edges


@dataclass(frozen=True)
class Crop:
    """A square of the image: centre (x, y) and side in pixels, turned by `angle` radians, perhaps mirrored.

    In a mirrored crop left and right are swapped: the model's points have the indices of their mirror images.
    """

    centre: np.ndarray
    side_px: float
    angle: float
    mirrored: bool = False

    def to_image(self, size_px: int) -> np.ndarray:
        """The affine map (2, 3) from pixels of the crop drawn at `size_px` to pixels of the image."""
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        turn = np.array([[cos, -sin], [sin, cos]]) * self.side_px / size_px
        if self.mirrored:
            turn[:, 0] *= -1
        return np.column_stack([turn, self.centre - turn @ [size_px / 2, size_px / 2]])


@dataclass(frozen=True)
class Mesh:
    """The model's result for one crop, in image pixels.

    points: (468, 3), lips and eyes refined, z scaled as x and y; base: (468, 2) before refinement;
    iris: (2, 5, 2), image-left eye first, centre and four edge points; presence: 0..1.
    """

    points: np.ndarray
    base: np.ndarray
    iris: np.ndarray
    presence: float


def landmarks(image: np.ndarray, crop: Crop) -> Mesh:
    """Run the mesh model on `crop` of `image`, uint8 (H, W, 3) RGB."""
    oversampling = max(1, round(crop.side_px / CROP_PX))
    size = CROP_PX * oversampling
    pixels = cv2.warpAffine(
        image,
        crop.to_image(size),
        (size, size),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    pixels = cv2.resize(pixels, (CROP_PX, CROP_PX), interpolation=cv2.INTER_AREA)
    x = (pixels.astype(np.float32) / 255).transpose(2, 0, 1)[None]
    model = session(MODEL)
    names = [output.name for output in model.get_outputs()]
    out = dict(zip(names, model.run(names, {"input": x}), strict=True))

    base = out["output_mesh_identity"].reshape(468, 3)
    refined = base.copy()
    for rows, name in (
        (LIPS, "output_lips"),
        (LEFT_EYE, "output_left_eye"),
        (RIGHT_EYE, "output_right_eye"),
    ):
        refined[list(rows), :2] = out[name].reshape(-1, 2)
    affine = crop.to_image(CROP_PX)
    turn, shift = affine[:, :2], affine[:, 2]
    iris = np.stack([out["output_left_iris"], out["output_right_iris"]]).reshape(2, 5, 2)
    depth = refined[:, 2:] * crop.side_px / CROP_PX
    return Mesh(
        points=np.concatenate([refined[:, :2] @ turn.T + shift, depth], axis=1),
        base=base[:, :2] @ turn.T + shift,
        iris=iris @ turn.T + shift,
        presence=float(1 / (1 + np.exp(-out["conv_faceflag"].item()))),
    )


def crop_of_candidate(candidate: Candidate) -> Crop:
    """The first crop to try for a detected face."""
    x0, y0, x1, y1 = candidate.box
    dx, dy = candidate.eyes[1] - candidate.eyes[0]
    centre = np.array([(x0 + x1) / 2, (y0 + y1) / 2])
    return Crop(centre, CROP_MARGIN * max(x1 - x0, y1 - y0), float(np.arctan2(dy, dx)))


def crop_of_points(points: np.ndarray) -> Crop:
    """The upright crop around landmarks (468, 2 or 3)."""
    xy = points[:, :2]
    dx, dy = xy[RIGHT_EYE_CORNERS[1]] - xy[LEFT_EYE_CORNERS[0]]
    angle = float(np.arctan2(dy, dx))
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, -sin], [sin, cos]])
    upright = xy @ turn
    low, high = upright.min(axis=0), upright.max(axis=0)
    return Crop(turn @ ((low + high) / 2), CROP_MARGIN * float((high - low).max()), angle)
