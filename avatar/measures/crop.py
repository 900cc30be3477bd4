"""Align a face with another's landmarks, so that the two can be compared pixel by pixel."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from avatar.measures.pose import STEADY
from avatar.preview.topology import CHIN, FOREHEAD

SMALLEST_PX, LARGEST_PX = 64, 288  # of the crop's side
MARGIN = 1.15  # the crop's side in face heights
_BLUR = (11, 11), 1.5  # SSIM's window
_ROWS = list(STEADY)


@dataclass(frozen=True)
class CropSimilarity:
    """How one face crop compares with the reference.

    ssim: structural similarity of the grey images, 1 for identical. colour: mean L*, a*, b*. sharpness:
    energy of the Laplacian over the grey variance, independent of brightness and contrast.
    """

    ssim: float
    colour: tuple[float, float, float]
    sharpness: float


class Reference:
    """A face that others are compared with, as an upright square crop of side `side_px`."""

    def __init__(self, image: np.ndarray, points: np.ndarray, face_px: float) -> None:
        """image: uint8 (H, W, 3) RGB; points: (468, 2 or 3) in it; face_px: the compared faces' height."""
        self.side_px = int(np.clip(round(MARGIN * face_px), SMALLEST_PX, LARGEST_PX))
        own_px = float(np.linalg.norm(points[FOREHEAD, :2] - points[CHIN, :2]))
        scale = self.side_px / (MARGIN * own_px)
        middle = (points[FOREHEAD, :2] + points[CHIN, :2]) / 2
        self._places = (points[_ROWS, :2] - middle) * scale + self.side_px / 2
        crop = self._crop(image, points)
        self._grey = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY).astype(np.float32)
        self.look = self._look(crop)

    def compare(self, image: np.ndarray, points: np.ndarray) -> CropSimilarity:
        """Align a face with this one, by a least-squares affine map of its steady landmarks, and compare."""
        return self._look(self._crop(image, points))

    def _crop(self, image: np.ndarray, points: np.ndarray) -> np.ndarray:
        source = np.column_stack([points[_ROWS, :2], np.ones(len(_ROWS))])
        affine = np.linalg.lstsq(source, self._places, rcond=None)[0].T.astype(np.float64)
        shrink = float(np.sqrt(abs(np.linalg.det(affine[:, :2]))))
        if shrink < 0.9:  # smooth before shrinking, or the crop would seem too sharp
            sigma = 0.45 * (1 / shrink**2 - 1) ** 0.5
            image = cv2.GaussianBlur(image, (0, 0), sigma)
        side = (self.side_px, self.side_px)
        return cv2.warpAffine(image, affine, side, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)

    def _look(self, crop: np.ndarray) -> CropSimilarity:
        grey = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY).astype(np.float32)
        lab = cv2.cvtColor(crop.astype(np.float32) / 255, cv2.COLOR_RGB2LAB).reshape(-1, 3).mean(0)
        contrast = float(grey.var()) + 1e-3
        sharpness = float(np.square(cv2.Laplacian(grey, cv2.CV_32F)).mean()) / contrast
        colour = (float(lab[0]), float(lab[1]), float(lab[2]))
        return CropSimilarity(ssim(grey, self._grey), colour, sharpness)


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity of two grey pictures, float32 (H, W) in 0..255.

    Source: Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment: from error visibility to structural
    similarity" (2004).
    """
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_a, mean_b = cv2.GaussianBlur(a, *_BLUR), cv2.GaussianBlur(b, *_BLUR)
    var_a = cv2.GaussianBlur(a * a, *_BLUR) - mean_a**2
    var_b = cv2.GaussianBlur(b * b, *_BLUR) - mean_b**2
    both = cv2.GaussianBlur(a * b, *_BLUR) - mean_a * mean_b
    upper = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    lower = (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    return float((upper / lower).mean())
