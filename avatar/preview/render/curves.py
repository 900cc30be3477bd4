"""Curves and boxes used in all parts of the renderer."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray
Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels, with x1 and y1 excluded


def smoothstep(x: Any) -> Array:
    """0 below 0, 1 above 1, and a smooth rise in between."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def lerp(a: Any, b: Any, t: Any) -> Any:
    """a where t is 0, b where t is 1; numbers or arrays."""
    return a + (b - a) * t


def bounding_box(points: Array, width: int, height: int) -> Box:
    """The bounding box of points (N, 2) in whole pixels, clipped to an image of width x height."""
    x0, y0 = np.floor(points.min(axis=0)).astype(int).tolist()
    x1, y1 = np.ceil(points.max(axis=0)).astype(int).tolist()
    return grown((x0, y0, x1 + 1, y1 + 1), 0, (0, 0, width, height))


def grown(box: Box, margin: int, within: Box) -> Box:
    """The box with a margin on every side, clipped to another box; empty if they do not overlap."""
    x0, y0 = max(box[0] - margin, within[0]), max(box[1] - margin, within[1])
    x1, y1 = min(box[2] + margin, within[2]), min(box[3] + margin, within[3])
    return min(x0, within[2]), min(y0, within[3]), max(x1, min(x0, within[2])), max(y1, min(y0, within[3]))


def inside(box: Box, origin: Box) -> tuple[slice, slice]:
    """Row and column slices of `box` in an array that covers the box `origin`."""
    return (
        slice(box[1] - origin[1], box[3] - origin[1]),
        slice(box[0] - origin[0], box[2] - origin[0]),
    )


class Rows:
    """Curves sampled on one evenly spaced axis, read at many points at once by linear interpolation."""

    def __init__(self, low: float, high: float, count: int) -> None:
        self.low, self.count = low, count
        self.scale = (count - 1) / (high - low)
        self.axis = np.linspace(low, high, count, dtype=np.float32)

    def curve(self, x: Array, y: Array) -> Array:
        """The curve through points (x, y), x in any order, constant beyond its ends."""
        order = np.argsort(x)
        return np.interp(self.axis, x[order], y[order]).astype(np.float32)

    def resample(self, curve: Array, x: Array) -> Array:
        """One curve at positions x."""
        return np.interp(x, self.axis, curve).astype(np.float32)

    def read(self, curves: Array, x: Array) -> Array:
        """curves (count, K) float32, contiguous, at x (...) → (K, ...) float32."""
        place = np.clip((x - np.float32(self.low)) * np.float32(self.scale), 0, self.count - 1.001)
        index = place.astype(np.int32)
        part = (place - index).astype(np.float32)[..., None]
        low, high = curves.take(index, axis=0), curves.take(index + 1, axis=0)
        return np.moveaxis(low + (high - low) * part, -1, 0)
