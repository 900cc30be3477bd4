"""The share of person in each pixel of a video's frames, steady over time.

The network sees each frame at its own small size. Its answer is averaged over time where the picture stands
still, followed at once where it moves, and then fitted to the edges of the frame.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from avatar.media.onnx import open_onnx

if TYPE_CHECKING:
    import onnxruntime

Array = np.ndarray

# The model is vendored with the preview's others, where NOTICE says whose it is; this imports nothing of it.
MODEL = Path(__file__).parents[2] / "preview" / "models" / "person_segmentation.onnx"
MODEL_PX = 256  # side of its square input; frames are scaled to it, whatever their shape
EDGES_PX = 256  # longer side at which it is worked out how the matte follows the frame's edges
STILL, MOVING = 2.0, 10.0  # change of brightness up to which a place stands still, and from which it moves
DOUBTED = 0.4  # change of the answer from which it is believed although the picture stands still
SLOWEST = 0.08  # share of a new answer in the average, where the picture stands still
REACH = 0.012  # radius within which edges are looked for, over the longer side
EDGE_CONTRAST = 1e-3  # variance of brightness, from 0 to 1, from which an edge is one
CLEAR, SOLID = 0.3, 0.9  # answers that count as background, and as person
SMALLEST_PIECE = 0.04  # of the largest piece of person; smaller ones, apart from it, are mistakes

_STEPS = np.linspace(0, 1, 256, dtype=np.float32)
_SMOOTHSTEP = np.round(255 * _STEPS * _STEPS * (3 - 2 * _STEPS)).astype(np.uint8)


@cache
def _network() -> onnxruntime.InferenceSession:
    return open_onnx(MODEL, threads=1)


class SteadyMatte:
    """The matte of one video's frames, given in order. Not thread-safe."""

    def __init__(self) -> None:
        self._average: Array | None = None  # float32 (MODEL_PX, MODEL_PX)
        self._before: Array | None = None  # the previous frame's brightness, likewise

    def of(self, frame: Array) -> Array:
        """The share of person, uint8 (H, W), 255: all. frame: uint8 (H, W, 3) RGB, the next one."""
        height, width = frame.shape[:2]
        average = self._follow(cv2.resize(frame, (MODEL_PX, MODEL_PX), interpolation=cv2.INTER_AREA))
        scale = min(1.0, EDGES_PX / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        coarse = cv2.resize(average, size, interpolation=cv2.INTER_LINEAR)
        radius = max(1, round(REACH * max(size)))
        spread = (coarse - CLEAR) * (255 / (SOLID - CLEAR))
        level = fit_to_edges(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), spread, radius)
        return cv2.LUT(level, _SMOOTHSTEP)

    def _follow(self, small: Array) -> Array:
        """The average, brought up to the next frame, uint8 (MODEL_PX, MODEL_PX, 3)."""
        answer = without_specks(answer_of(small))
        grey = cv2.GaussianBlur(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), 1.5)
        if self._average is None or self._before is None:
            self._average = answer
        else:
            change = cv2.dilate(cv2.absdiff(grey, self._before), np.ones((5, 5), np.uint8))
            moving = np.clip((change - STILL) / (MOVING - STILL), 0, 1)
            # A place may change hands without changing its brightness, such as a dark sleeve on a dark wall.
            surprise = np.clip((cv2.absdiff(answer, self._average) - DOUBTED) / (1 - DOUBTED), 0, 1)
            moving = np.maximum(moving, surprise)
            self._average += (SLOWEST + (1 - SLOWEST) * moving) * (answer - self._average)
        self._before = grey
        return self._average


def answer_of(small: Array) -> Array:
    """The network's answer for one picture, float32 (MODEL_PX, MODEL_PX). small: uint8 of that size, RGB."""
    pixels = (small.astype(np.float32) / 255).transpose(2, 0, 1)[None]
    answer = _network().run(None, {"input": pixels})[0]
    return np.ascontiguousarray(answer.reshape(MODEL_PX, MODEL_PX), np.float32)


def without_specks(answer: Array) -> Array:
    """The answer, float32 (H, W), with zeros for pieces much smaller than the largest."""
    _, labels, found, _ = cv2.connectedComponentsWithStats((answer > 0.2).astype(np.uint8))
    areas = found[:, cv2.CC_STAT_AREA].copy()
    areas[0] = 0  # the background
    specks = areas < SMALLEST_PIECE * areas.max()
    specks[0] = False
    return np.where(specks[labels], np.float32(0), answer)


def fit_to_edges(guide: Array, coarse: Array, radius: int) -> Array:
    """A coarse matte, float32 (h, w), brought to the guide's size, with its edges moved to the guide's.

    coarse: from 0 to 255, and beyond, where the result is cut off. guide, result: uint8 (H, W). radius: in
    pixels of the coarse one, within which edges are looked for.
    Source: He, Sun, "Fast guided filter", arXiv 1505.00996.
    """
    small = cv2.resize(guide, coarse.shape[::-1], interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    window = (2 * radius + 1, 2 * radius + 1)

    def mean(x: Array) -> Array:
        return cv2.blur(x, window)

    mean_bright, mean_coarse = mean(small), mean(coarse)
    spread = mean(small * small) - mean_bright * mean_bright + EDGE_CONTRAST
    slope = (mean(small * coarse) - mean_bright * mean_coarse) / spread
    offset = mean(mean_coarse - slope * mean_bright)
    size = guide.shape[::-1]
    slope = cv2.resize(mean(slope), size, interpolation=cv2.INTER_LINEAR)
    offset = cv2.resize(offset, size, interpolation=cv2.INTER_LINEAR)
    return cv2.add(cv2.multiply(slope, guide, scale=1 / 255, dtype=cv2.CV_32F), offset, dtype=cv2.CV_8U)
