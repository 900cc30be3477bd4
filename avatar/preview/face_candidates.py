"""Finding where faces may be: MediaPipe's two small face detectors over the image and over windows of it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

from avatar.hardware.host import num_cores
from avatar.preview.models import session

MIN_SCORE = 0.3
SURE_SCORE = 0.75  # a face above this over the whole image is taken as it was seen there
WINDOWS = (1.0, 0.6)  # window sides, in short sides of the image
MAX_WINDOWS = 6  # along one side: a very long picture is searched with gaps
OVERLAP = 0.3  # boxes of one face overlap by more than this (intersection over union)


@dataclass(frozen=True)
class Candidate:
    """A possible face: score 0..1, box (x0, y0, x1, y1) and eyes (2, 2), left first, in pixels."""

    score: float
    box: np.ndarray
    eyes: np.ndarray


@dataclass(frozen=True)
class Detector:
    """One single-shot detector: square input of `size_px`, one row of anchor pairs per stride."""

    model: str
    size_px: int
    strides: tuple[int, ...]

    def __call__(self, image: np.ndarray) -> list[Candidate]:
        """The candidates in `image`, uint8 (H, W, 3) RGB."""
        size, (height, width) = self.size_px, image.shape[:2]
        scale = size / max(height, width)
        fitted_h, fitted_w = max(1, round(height * scale)), max(1, round(width * scale))
        top, left = (size - fitted_h) // 2, (size - fitted_w) // 2
        canvas = np.zeros((size, size, 3), np.uint8)
        canvas[top : top + fitted_h, left : left + fitted_w] = cv2.resize(
            image, (fitted_w, fitted_h), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        )
        x = (canvas.astype(np.float32) / 127.5 - 1).transpose(2, 0, 1)[None]
        boxes, logits = session(self.model).run(["regressors", "classificators"], {"input": x})
        scores = 1 / (1 + np.exp(-np.clip(logits.reshape(-1), -80, 80)))
        found = np.flatnonzero(scores > MIN_SCORE)
        anchors = _anchors(size, self.strides)[found, None]
        # rows of 8 points: centre, (width, height), right eye, left eye, nose, mouth, both ears
        points = boxes.reshape(-1, 8, 2)[found] / size
        span = points[:, 1:2] * [[[-0.5, -0.5], [0.5, 0.5]]]
        origin = np.array([left, top])
        corners = ((points[:, :1] + anchors + span) * size - origin) / scale
        eyes = ((points[:, 2:4] + anchors) * size - origin) / scale
        return [
            Candidate(float(s), box.reshape(4), eye)
            for s, box, eye in zip(scores[found], corners, eyes, strict=True)
        ]


DETECTORS = (
    Detector("face_detection_short_range", 128, (8, 16, 16, 16)),
    Detector("face_detection_back", 256, (16, 32, 32, 32)),
)


@cache
def _anchors(size_px: int, strides: tuple[int, ...]) -> np.ndarray:
    """Anchor centres (A, 2) as fractions: a grid per stride, two anchors for each layer of that stride."""
    rows = []
    for stride in dict.fromkeys(strides):
        cells = size_px // stride
        y, x = np.mgrid[:cells, :cells]
        centres = (np.stack([x, y], -1).reshape(-1, 2) + 0.5) / cells
        rows.append(np.repeat(centres, 2 * strides.count(stride), axis=0))
    return np.concatenate(rows)


def candidates(image: np.ndarray) -> list[Candidate]:
    """Possible faces in `image`, uint8 (H, W, 3) RGB, best first; one candidate for each face."""
    whole = [c for detector in DETECTORS for c in detector(image)]
    sure = [c for c in _merged(whole) if c.score > SURE_SCORE]
    closer = _merged(whole + [c for fraction in WINDOWS for c in _in_windows(image, fraction)])
    others = [c for c in closer if not any(_overlap(c.box, one.box) > OVERLAP for one in sure)]
    return sorted(sure + others, key=lambda c: -c.score)


def _in_windows(image: np.ndarray, fraction: float) -> list[Candidate]:
    """Candidates in square windows, which overlap by half where there are not too many."""
    height, width = image.shape[:2]
    side = int(min(height, width) * fraction)
    if side == height == width:
        return []

    def look(corner: tuple[int, int]) -> list[Candidate]:
        x, y = corner
        window = np.ascontiguousarray(image[y : y + side, x : x + side])
        shift = np.array([x, y])
        return [
            Candidate(c.score, c.box + np.tile(shift, 2), c.eyes + shift)
            for detector in DETECTORS
            for c in detector(window)
        ]

    corners = [(x, y) for y in _starts(height, side) for x in _starts(width, side)]
    return [candidate for found in _pool().map(look, corners) for candidate in found]


@cache
def _pool() -> ThreadPoolExecutor:
    """Threads for all pictures: each that is begun anew keeps memory of its own."""
    return ThreadPoolExecutor(num_cores(), "faces")


def _starts(length: int, side: int) -> list[int]:
    count = min(int(np.ceil((length - side) / (side / 2))) + 1, MAX_WINDOWS)
    return [int(v) for v in np.unique(np.linspace(0, length - side, count).astype(int))]


def _merged(found: list[Candidate]) -> list[Candidate]:
    """Overlapping candidates averaged by score."""
    rest = sorted(found, key=lambda c: -c.score)
    merged = []
    while rest:
        best = rest[0]
        same = [c for c in rest if _overlap(c.box, best.box) > OVERLAP or c is best]
        rest = [c for c in rest if all(c is not s for s in same)]
        weights = np.array([c.score for c in same])
        box = np.average([c.box for c in same], axis=0, weights=weights)
        eyes = np.average([c.eyes for c in same], axis=0, weights=weights)
        merged.append(Candidate(best.score, box, eyes))
    return merged


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes (x0, y0, x1, y1)."""
    width, height = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
    union = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - width * height
    return float(width * height / union) if union > 0 else 0.0
