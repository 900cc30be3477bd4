"""Put something else behind the person in a video's frames, or nothing at all.

A pixel on the person's edge shows some of the old background; its own colour is estimated first, so that no
halo of the old background is carried over.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from avatar.media.background.choice import colour_of
from avatar.media.background.matte import SteadyMatte
from avatar.request import BLUR, TRANSPARENT

Array = np.ndarray

SOFTNESS = 0.022  # standard deviation of the blurred background, over the longer side
COLOURS_PX = 160  # longer side at which the colours on either side of an edge are averaged
REACH = 0.018  # radius of that average, over the longer side
SQUARE_PX, DARK, LIGHT = 16, 90, 140  # of the chequered ground behind a transparent video, where it plays


class Compositor:
    """Replaces the background of one video's frames, given in order. Not thread-safe."""

    def __init__(self, background: str, picture: Array | None = None) -> None:
        """background: as the setting has it. picture: uint8 (H, W, 3) RGB, for a picture file."""
        self._background, self._picture = background, picture
        self._matte = SteadyMatte()
        self._behind: Array | None = None  # what is put behind, where it is the same for all frames

    def apply(self, frames: Array) -> Array:
        """The frames with another background; uint8 (T, H, W, 3), or (T, H, W, 4) for a transparent one.

        frames: uint8 (T, H, W, 3) RGB, the next of the video. Colour is not premultiplied by opacity.
        """
        return np.stack([self._one(frame) for frame in frames]) if len(frames) else frames

    def _one(self, frame: Array) -> Array:
        share = self._matte.of(frame)
        person, around = colours(frame, share)
        if self._background == TRANSPARENT:
            return np.dstack([person, share])
        if self._background == BLUR:
            behind = cv2.GaussianBlur(around, (0, 0), SOFTNESS * max(around.shape[:2]))
            behind = cv2.resize(behind, frame.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        else:
            behind = self._constant(*frame.shape[:2])
        return laid_over(person, share, behind)

    def _constant(self, height: int, width: int) -> Array:
        if self._behind is None or self._behind.shape[:2] != (height, width):
            if self._picture is not None:
                self._behind = covering(self._picture, height, width)
            else:
                colour = np.array(colour_of(self._background), np.uint8)
                self._behind = np.broadcast_to(colour, (height, width, 3)).copy()
        return self._behind


def colours(frame: Array, share: Array) -> tuple[Array, Array]:
    """The person's own colours, uint8 (H, W, 3), and the background's, small, filled in behind the person.

    frame: uint8 (H, W, 3) RGB. share: uint8 (H, W), of person. On edges the two are told apart by the
    averages of what lies on either side.
    Source: Forte, "Approximate fast foreground colour estimation", ICIP 2021 (blur fusion).
    """
    height, width = frame.shape[:2]
    scale = min(1.0, COLOURS_PX / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(frame, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    few = cv2.resize(share, size, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    sure, clear = np.square(np.square(few)), np.square(np.square(1 - few))  # what is surely so counts most
    near = average(small, sure, REACH)
    around, far = average(small, clear, REACH), average(small, clear, 4 * REACH)
    around = np.where((average_of(1 - few, REACH) > 0.05)[..., None], around, far)
    around = np.clip(around, 0, 255).astype(np.uint8)
    person = frame.copy()
    own, other = (
        cv2.resize(one, (width, height), interpolation=cv2.INTER_LINEAR)
        for one in (np.clip(near, 0, 255).astype(np.uint8), around)
    )
    cv2.copyTo(own, cv2.inRange(share, 0, 0), person)  # nothing of the old background is left
    edge = np.flatnonzero(cv2.inRange(share, 1, 254))
    if len(edge):
        own, other = own.reshape(-1, 3)[edge], other.reshape(-1, 3)[edge]
        alpha, own = share.ravel()[edge, None].astype(np.float32) / 255, own.astype(np.float32)
        seen = person.reshape(-1, 3)[edge]
        own += alpha * (seen - alpha * own - (1 - alpha) * other)
        person.reshape(-1, 3)[edge] = np.clip(np.round(own), 0, 255).astype(np.uint8)
    return person, around


def average(pixels: Array, weight: Array, reach: float) -> Array:
    """The weighted mean around each pixel, float32 (H, W, 3); weight: float32 (H, W)."""
    total = average_of(pixels * weight[..., None], reach)
    return total / np.maximum(average_of(weight, reach), 1e-3)[..., None]


def average_of(values: Array, reach: float) -> Array:
    """The mean within a radius of reach times the longer side."""
    window = 2 * max(1, round(reach * max(values.shape[:2]))) + 1
    return cv2.blur(cv2.blur(values, (window, window)), (window, window))


def laid_over(person: Array, share: Array, behind: Array) -> Array:
    """The person over something else: uint8 (H, W, 3) both, share uint8 (H, W)."""
    part = share.astype(np.float32) / 255
    return cv2.blendLinear(person, behind, part, 1 - part)


def covering(picture: Array, height: int, width: int) -> Array:
    """A picture, uint8 (h, w, 3), scaled to cover a frame; what is too much is cut off evenly."""
    scale = max(height / picture.shape[0], width / picture.shape[1])
    size = (max(width, round(picture.shape[1] * scale)), max(height, round(picture.shape[0] * scale)))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    scaled = cv2.resize(picture, size, interpolation=way)
    top, left = (size[1] - height) // 2, (size[0] - width) // 2
    return np.ascontiguousarray(scaled[top : top + height, left : left + width])


@lru_cache(maxsize=2)
def _chequers(height: int, width: int) -> Array:
    y, x = np.indices((height, width)) // SQUARE_PX
    return np.where((x + y) % 2, LIGHT, DARK).astype(np.uint8)[..., None].repeat(3, 2)


def on_chequers(frames: Array) -> Array:
    """Transparent frames, uint8 (T, H, W, 4), over a chequered ground, for video that has no transparency."""
    _, height, width, _ = frames.shape
    ground = _chequers(height, width)
    return np.stack([laid_over(np.ascontiguousarray(one[..., :3]), one[..., 3], ground) for one in frames])
