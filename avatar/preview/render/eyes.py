"""Eyelids and gaze: a skin layer with the lids, and the eyeball behind it."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from avatar.preview import topology as topo
from avatar.preview.face_detection import Face
from avatar.preview.pose import Pose
from avatar.preview.render.curves import Array, Box, Rows, bounding_box, smoothstep

U = Rows(-1.35, 1.35, 65)  # along the eye, in half eye widths
LASH = 0.04  # the lid's edge lies this far below its landmarks, in eye openings
WATERLINE = 0.06  # the eyeball ends this far below the lower lid's landmarks, in eye openings
LASHES = 0.14  # lashes and their shadow reach at most this far below the lid, in eye openings
LEAST_WIDTH_PX = 8
BALL_RADIUS = 2.05  # of the eyeball, in iris radii
LID_FOLLOWS = 0.8  # share of the iris's vertical motion that the upper lid follows
DIM_LID = 0.9  # a lid darker than this share of the skin under the eye came from the brow or its shadow …
MOST_FILL = 0.8  # … and gets at most this share of that skin's colour
SKIN_TOLERANCE = 60  # colour difference, 0..255, beyond which a pixel is not the lid's skin
LASH_SHADE = 0.55  # share of the light absorbed by the lashes of a shut eye


@dataclass(frozen=True)
class ShutLid:
    """Colour and shade added to the skin of a closing lid.

    fill: (h, w, 3) colour of the skin under the eye; share: (h, w) its opacity;
    shade: (h, w) share of light that passes the lashes.
    """

    fill: Array
    share: Array
    shade: Array

    def paint(self, skin: Array) -> Array:
        """Apply to skin, uint8 (h, w, 3); return float32 (h, w, 3)."""
        return (skin + (self.fill - skin) * self.share[..., None]) * self.shade[..., None]


@dataclass(frozen=True)
class EyeWarp:
    """One frame's warp of an eye over its box, float32 (h, w).

    skin_x, skin_y: added to the source coordinates of the lids and the skin around them, image px;
    ball_x, ball_y: the same for the eyeball; ball: share of the pixel that the eyeball fills, 0..1;
    lid: paint of the lid, None for an open eye.
    """

    skin_x: Array
    skin_y: Array
    ball_x: Array
    ball_y: Array
    ball: Array
    lid: ShutLid | None

    def paint(self, skin: Array, ball: Array) -> None:
        """Composite eyeball and skin, both uint8 (h, w, 3), into skin, in place."""
        lit = skin.astype(np.float32) if self.lid is None else self.lid.paint(skin)
        skin[:] = np.clip(lit + (ball - lit) * self.ball[..., None] + 0.5, 0, 255).astype(np.uint8)


class Eye:
    """One eye, its lids as curves in its own frame: x along the eye, y down, px, origin between corners."""

    def __init__(self, image: Array, face: Face, side: int) -> None:
        """image: uint8 (H, W, 3) RGB; side: 0 is the image-left eye, 1 the image-right one."""
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
        self.half_width = np.float32(max(width_px / 2, 1e-3))
        self._measure_lids(points, side)
        self._find_lid_skin(image)
        self._measure_iris(face, side)
        self.lids = np.column_stack([self.upper, self.lower])
        self.curves = np.column_stack(
            [self.upper, self.lower, self.brow, self.lash_height, *self._lid_fill(image)]
        ).astype(np.float32)
        corners = [
            self.origin + x * U.axis[-1] * self.half_width * self.right + y * self.down
            for x in (-1, 1)
            for y in (float(self.brow.min()) - 2, float(self.lower.max()) + 1.2 * self.opening)
        ]
        self.box: Box = bounding_box(np.array(corners), image.shape[1], image.shape[0])

    def _local(self, points: Array) -> Array:
        offset = points - self.origin
        return np.stack([offset @ self.right, offset @ self.down], axis=-1)

    def _measure_lids(self, points: Array, side: int) -> None:
        def curve(indices: tuple[int, ...]) -> Array:
            local = self._local(points[list(indices)])
            return U.curve(local[:, 0] / self.half_width, local[:, 1])

        self.upper = curve((topo.LEFT_EYE_UPPER, topo.RIGHT_EYE_UPPER)[side])
        self.lower = curve((topo.LEFT_EYE_LOWER, topo.RIGHT_EYE_LOWER)[side])
        self.opening = max(float((self.lower - self.upper).max()), 0.5)
        brow = curve((topo.LEFT_BROW, topo.RIGHT_BROW)[side])
        self.brow = np.minimum(brow, self.upper - 0.5 * self.opening)

    def _find_lid_skin(self, image: Array) -> None:
        """Find where lashes end and skin begins above the lid, and where hair or a rim ends the skin."""
        shares = np.linspace(0.10, 1, 19, dtype=np.float32)  # of the way from the lid to the brow
        rows = self.upper + (self.brow - self.upper) * shares[:, None]
        middle = np.abs(U.axis) < 0.7
        colour = np.stack([self._colour(image, row[None])[middle].mean(axis=0) for row in rows])
        other = np.abs(colour - np.median(colour, axis=0)).max(axis=1) > SKIN_TOLERANCE
        start = int(np.argmin(other))
        beyond = np.flatnonzero(other[start:])
        end = shares[start + beyond[0] - 1] if len(beyond) else 1.0
        # A lid brighter than the cheek is not skin but the white of a drawn eye: such an eye stays open.
        cheek = self._colour(image, self.lower + self.opening * np.array([[1.2], [1.8]], np.float32))[middle]
        self.blinks = float(np.median(colour, axis=0).mean() - cheek.mean()) < SKIN_TOLERANCE
        above = self.upper - self.brow
        self.lash_height = above * min(float(shares[start]), 0.4)
        self.brow = self.upper - above * max(float(end), 0.35)

    def _measure_iris(self, face: Face, side: int) -> None:
        self.iris_radius = 0.0
        if face.iris is None:
            return
        iris = self._local(face.iris[side].astype(np.float32))
        self.iris_x = float(iris[0, 0])
        radius = float(np.linalg.norm(iris[1:] - iris[0], axis=1).mean())
        if abs(self.iris_x) < self.half_width and radius < self.half_width:
            self.iris_radius = radius

    def _lid_fill(self, image: Array) -> tuple[Array, Array]:
        """(65,) opacity of the fill on a shut lid, and (65, 3) its colour, that of the skin under the eye."""
        shares = np.linspace(0.25, 0.75, 5)[:, None]
        lid = self._colour(image, self.brow + (self.upper - self.brow) * shares)
        pouch = self._colour(image, self.lower + self.opening * (0.2 + 0.5 * shares))
        brighter = DIM_LID * pouch.mean(axis=1) / np.maximum(lid.mean(axis=1), 1)
        share = np.clip((brighter - 1) / 0.6, 0, MOST_FILL).astype(np.float32)
        return cv2.GaussianBlur(share[None], (0, 0), 5)[0], cv2.GaussianBlur(
            DIM_LID * pouch[None], (0, 0), 5
        )[0]

    def _colour(self, image: Array, y: Array) -> Array:
        """(65, 3): mean colour of the image along U over the rows y (n, 65) of the eye's frame."""
        x = U.axis * self.half_width
        image_x = self.origin[0] + x * self.right[0] + y * self.down[0]
        image_y = self.origin[1] + x * self.right[1] + y * self.down[1]
        at = image_x.astype(np.float32), image_y.astype(np.float32)
        drawn = cv2.remap(image, *at, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return drawn.astype(np.float32).mean(axis=0)

    def gaze_px(self, pose: Pose) -> tuple[float, float]:
        """Displacement of the iris, px, limited so that it neither reaches a corner nor rolls under a lid."""
        if not self.iris_radius:
            return 0.0, 0.0
        ball = BALL_RADIUS * self.iris_radius
        left = max(float(self.half_width) + self.iris_x - 1.15 * self.iris_radius, 0.0)
        right = max(float(self.half_width) - self.iris_x - 1.15 * self.iris_radius, 0.0)
        across = float(np.clip(ball * np.sin(pose.gaze_x), -0.7 * left, 0.7 * right))
        down = float(np.clip(ball * np.sin(pose.gaze_y), -0.30 * self.opening, 0.30 * self.opening))
        return across, down

    def warp(self, pose: Pose, x: Array, y: Array) -> EyeWarp | None:
        """The eye's warp at positions x, y in the unmoved portrait, float32 (h, w) px; None at rest."""
        across, down = self.gaze_px(pose)
        blink = float(np.clip(pose.blink, 0, 1)) * self.blinks
        if blink < 0.02 and abs(across) + abs(down) < 0.02:
            return None
        dx, dy = x - self.origin[0], y - self.origin[1]
        u = (dx * self.right[0] + dy * self.right[1]) / self.half_width
        y = dx * self.down[0] + dy * self.down[1]
        upper, lower, brow, lash_height, share, *fill = U.read(self.curves, u)
        opening = lower - upper
        lash, meet = upper + LASH * opening, lower + WATERLINE * opening
        follow = LID_FOLLOWS * down * (1 - blink) * np.clip(1.15 - u * u, 0, 1)
        lid = lash + blink * (meet - lash) + follow
        side = np.clip((1.35 - np.abs(u)) / 0.15, 0, 1)

        # Above the lid the skin stretches from the brow down; lashes move rigidly with the lid.
        from_brow = np.clip((y - brow) / np.maximum(lid - brow, 1), 0, 1)
        above = (lid - lash) * smoothstep((y - brow) / np.maximum(lid - lash_height - brow, 1))
        pouch = (0.25 * follow - 0.10 * blink * opening) * np.exp(
            (lower - np.maximum(y, lower)) / (0.5 * self.opening)
        )
        middle = (lid + meet) / 2
        skin = np.where(y <= middle, above, pouch) * side
        ball = np.clip(np.minimum(y - lid, meet - y) + 0.5, 0, 1) * (np.abs(u) < 1.1)
        ball_across, ball_down = self._ball_shift(u, y, across, down)
        return EyeWarp(
            -skin * self.down[0],
            -skin * self.down[1],
            ball_across * self.right[0] + ball_down * self.down[0],
            ball_across * self.right[1] + ball_down * self.down[1],
            ball,
            self._lid_paint(blink, y - lid, from_brow, u, share, fill) if blink >= 0.02 else None,
        )

    def _lid_paint(
        self, blink: float, below_lid: Array, from_brow: Array, u: Array, share: Array, fill: list[Array]
    ) -> ShutLid:
        side = np.clip((1.1 - np.abs(u)) / 0.3, 0, 1)
        lashes = np.exp(-((below_lid / max(0.07 * self.opening, 0.8)) ** 2))
        covered = blink * side * smoothstep(from_brow / 0.7) * np.clip(1 - below_lid, 0, 1)
        return ShutLid(cv2.merge(fill), share * covered, 1 - LASH_SHADE * blink**2 * lashes * side)

    def _ball_shift(self, u: Array, y: Array, across: float, down: float) -> tuple[Array, Array]:
        """Offsets of the eyeball's source pixels, along and down the eye, px.

        The iris moves rigidly, the white is compressed towards the corners, and lashes are not sampled.
        """
        if not (across or down):
            return np.zeros_like(u), np.zeros_like(u)
        x = u * self.half_width - np.float32(self.iris_x)
        room = np.where(x < 0, self.half_width + self.iris_x, self.half_width - self.iris_x)
        beyond = (np.abs(x) - self.iris_radius) / np.maximum(room - self.iris_radius, 1)
        weight = 1 - smoothstep(beyond)
        from_across, from_down = -across * weight, -down * weight
        upper, lower = U.read(self.lids, u + from_across / self.half_width)
        opening = lower - upper
        clear = np.minimum(LASHES * opening, 0.7 * abs(across) + 1.3 * abs(down)) * weight
        top, bottom = upper + LASH * opening + clear, lower + WATERLINE * opening - 0.5 * clear
        return from_across, np.clip(y + from_down, top, np.maximum(bottom, top)) - y


def eyes_of(image: Array, face: Face) -> list[Eye]:
    """The eyes that can move; empty if they are hidden or unknown. Either both blink or neither does."""
    if not face.has_eyes:
        return []
    eyes = [eye for eye in (Eye(image, face, side) for side in (0, 1)) if eye.usable]
    if not all(eye.blinks for eye in eyes):
        for eye in eyes:
            eye.blinks = False
    return eyes
