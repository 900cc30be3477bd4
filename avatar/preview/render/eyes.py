"""Eyelids and gaze: where in the portrait each pixel around an eye comes from."""

from __future__ import annotations

import numpy as np

from avatar.preview import topology as topo
from avatar.preview.face import Face
from avatar.preview.pose import Pose
from avatar.preview.render.shaping import Array, Box, Rows, bounding_box, smoothstep

U = Rows(-1.35, 1.35, 65)  # along the eye, in half eye widths
LASH = 0.07  # the lash line lies this far below the lid landmarks, in eye openings
LEAST_WIDTH_PX = 8
BALL_RADIUS = 2.05  # of the eyeball, in iris radii
LID_FOLLOWS = 0.8  # how far the upper lid goes along with the iris, up and down


class Eye:
    """One eye: its lids as curves in its own frame (x along the eye, y down, px, origin between the corners)."""

    def __init__(self, face: Face, side: int, width: int, height: int) -> None:
        """side: 0 is the image-left eye, 1 the image-right one; width, height: the image's."""
        points = face.landmarks[:, :2].astype(np.float32)
        outer, inner = (topo.LEFT_EYE_CORNERS, topo.RIGHT_EYE_CORNERS)[side]
        span = points[inner] - points[outer]
        width_px = float(np.linalg.norm(span))
        self.usable = width_px >= LEAST_WIDTH_PX
        self.right = (span / max(width_px, 1e-3)).astype(np.float32)
        if self.right[0] < 0:
            self.right = -self.right
        self.down = np.array([-self.right[1], self.right[0]], np.float32)
        self.origin = (points[outer] + points[inner]) / 2
        self.half_width = max(width_px / 2, 1e-3)

        upper = self._local(points[list((topo.LEFT_EYE_UPPER, topo.RIGHT_EYE_UPPER)[side])])
        lower = self._local(points[list((topo.LEFT_EYE_LOWER, topo.RIGHT_EYE_LOWER)[side])])
        brow = self._local(points[list((topo.LEFT_BROW, topo.RIGHT_BROW)[side])])
        self.upper = U.curve(upper[:, 0] / self.half_width, upper[:, 1])
        self.lower = U.curve(lower[:, 0] / self.half_width, lower[:, 1])
        self.opening = max(float((self.lower - self.upper).max()), 0.5)
        self.brow_y = min(float(brow[:, 1].mean()), -0.6 * self.opening)
        self._measure_iris(face, side)
        corners = [
            self.origin + x * U.axis[-1] * self.half_width * self.right + y * self.down
            for x in (-1, 1)
            for y in (self.brow_y - 2, float(self.lower.max()) + 1.2 * self.opening)
        ]
        self.box: Box = bounding_box(np.array(corners), width, height)

    def _local(self, points: Array) -> Array:
        offset = points - self.origin
        return np.stack([offset @ self.right, offset @ self.down], axis=-1)

    def _measure_iris(self, face: Face, side: int) -> None:
        self.iris_radius = 0.0
        if face.iris is None:
            return
        iris = self._local(face.iris[side].astype(np.float32))
        self.iris = iris[0]
        radius = float(np.linalg.norm(iris[1:] - iris[0], axis=1).mean())
        if abs(iris[0, 0]) < self.half_width and radius < self.half_width:
            self.iris_radius = radius

    def gaze_px(self, pose: Pose) -> tuple[float, float]:
        """How far the iris moves, px, kept clear of the corners and of rolling under a lid."""
        if not self.iris_radius:
            return 0.0, 0.0
        ball = BALL_RADIUS * self.iris_radius
        left = max(self.half_width + self.iris[0] - 1.15 * self.iris_radius, 0.0)
        right = max(self.half_width - self.iris[0] - 1.15 * self.iris_radius, 0.0)
        across = float(np.clip(ball * np.sin(pose.gaze_x), -0.7 * left, 0.7 * right))
        down = float(np.clip(ball * np.sin(pose.gaze_y), -0.30 * self.opening, 0.30 * self.opening))
        return across, down

    def shift(self, pose: Pose, places: Array) -> Array | None:
        """What to add to the source coordinates at places, float32 (h, w, 2) px; None where nothing moves."""
        across, down = self.gaze_px(pose)
        if not self.usable or (pose.blink < 0.02 and abs(across) + abs(down) < 0.02):
            return None
        offset = places - self.origin
        u = (offset @ self.right) / np.float32(self.half_width)
        y = offset @ self.down
        upper, lower = U.read(np.stack([self.upper, self.lower], axis=1), u)
        opening = lower - upper
        lash, meet = upper + LASH * opening, lower + 0.03 * opening
        follow = LID_FOLLOWS * down * (1 - pose.blink) * np.clip(1.15 - u * u, 0, 1)
        lid = lash + pose.blink * (meet - lash) + follow

        # Above the lid the skin stretches from the brow down; lashes move as one with the lid.
        from_brow = (y - self.brow_y) / np.maximum(lid - self.brow_y, 1)
        skin = (lid - lash) * smoothstep(from_brow / 0.9)
        pouch = -0.10 * pose.blink * opening * np.exp(-np.maximum(y - lower, 0) / max(0.5 * self.opening, 1))
        pouch = pouch + 0.25 * follow * np.exp(-np.maximum(y - lower, 0) / max(0.5 * self.opening, 1))
        closed = y <= lid + 0.35
        below = y >= meet
        side = np.clip((1.35 - np.abs(u)) / 0.15, 0, 1)
        vertical = np.where(closed, skin, np.where(below, pouch, 0)) * side
        horizontal = np.zeros_like(vertical)
        if across or down:
            inside = ~(closed | below)
            weight = inside * self._ball_weight(u, y, lid, meet)
            vertical = vertical + down * weight
            horizontal = across * weight
        return -(horizontal[..., None] * self.right + vertical[..., None] * self.down).astype(np.float32)

    def _ball_weight(self, u: Array, y: Array, lid: Array, meet: Array) -> Array:
        """1 on the iris, falling to 0 at the corners and, steeply, at the lids."""
        x = u * self.half_width - self.iris[0]
        room = np.where(x < 0, self.half_width + self.iris[0], self.half_width - self.iris[0])
        beyond = (np.abs(x) - self.iris_radius) / np.maximum(room - self.iris_radius, 1)
        edge = max(1.5, 0.06 * self.opening)
        return (1 - smoothstep(beyond)) * np.clip((y - lid) / edge, 0, 1) * np.clip((meet - y) / edge, 0, 1)


def eyes_of(face: Face, width: int, height: int) -> list[Eye]:
    """The eyes that may move: none where they are hidden or unknown."""
    if not face.has_eyes:
        return []
    return [eye for eye in (Eye(face, side, width, height) for side in (0, 1)) if eye.usable]
