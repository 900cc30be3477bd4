"""Head motion as a warp: sway, turn and nod by the face's depth, raised brows, breathing shoulders."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from avatar.preview import topology as topo
from avatar.preview.face_detection import Face
from avatar.preview.pose import Pose
from avatar.preview.render.curves import Array, Box, bounding_box, smoothstep
from avatar.preview.render.lips import MouthFrame

LATTICE_PX = 4  # the field is smooth: computed at every fourth pixel and interpolated
BROW_RAISE = 0.022  # at brow = 1, in face heights
BREATH_RISE = 0.012  # of the shoulders, in face heights
BACK_OF_HEAD = -0.15  # depth of parts without landmarks (hair, ears), in face heights
BORDER = 0.3  # towards another face the motion fades over this difference of distances, each in face heights


class HeadField:
    """The warp of the head: maps each pixel around it to its source position in the unmoved portrait.

    box: the pixels that may move; support: float32 (h, w), above 0 where anything can move at all; territory:
    float32 (h, w), above 0 nearer to this face than to any other.
    """

    def __init__(self, face: Face, width: int, height: int, others: Sequence[Face] = ()) -> None:
        """others: faces near which this head must not move anything, so that each may move by itself."""
        points = face.landmarks[:, :2].astype(np.float32)
        frame = MouthFrame.of(points)
        centre, size = _middle(face)
        self.face_height = size
        reach = np.array([[-1.75, -1.6], [1.75, 2.2]], np.float32) * size
        self.box: Box = bounding_box(centre + reach, width, height)
        self._lay_lattice()
        dx, dy = self.x - centre[0], self.y - centre[1]
        across = dx * frame.right[0] + dy * frame.right[1]
        down = dx * frame.down[0] + dy * frame.down[1]
        radius = np.hypot(across / (0.90 * size), down / np.where(down > 0, 1.25 * size, 0.95 * size))
        own = smoothstep(self._distance_to_others(face, others) / BORDER)
        edge = smoothstep(self._distance_to_edge() / (0.12 * size)) * own
        weight = (1 - smoothstep((radius - 0.72) / 0.78)) * edge
        depth = self._depth(face, size, radius)
        pivot = points[topo.CHIN] + frame.down * 0.15 * size
        self.brow = (self._brow_weight(points, size) * own).astype(np.float32)
        chin = points[topo.CHIN]
        self.shoulders = (
            smoothstep((self.y - chin[1]) / (0.7 * size))
            * np.exp(-(((self.x - chin[0]) / (1.2 * size)) ** 2))
            * edge
        ).astype(np.float32)
        self.weight = weight.astype(np.float32)
        # Basis of the head's displacement, already weighted: a frame is a linear combination of these.
        self.by_depth = (depth * weight).astype(np.float32)
        self.from_pivot = [
            (weight * (self.x - pivot[0])).astype(np.float32),
            (weight * (self.y - pivot[1])).astype(np.float32),
        ]
        self.from_centre = [(weight * dx).astype(np.float32), (weight * dy).astype(np.float32)]
        self.support = self._full(self.weight + self.shoulders + self.brow)
        self.territory = self._full(own.astype(np.float32))

    def places(self, pose: Pose, scale: float) -> Array:
        """float32 (h, w, 2): source position of each pixel of the box in the unmoved portrait.

        x, y from the centre of the box's first pixel, in pixels of an image enlarged by `scale`.
        """
        size = self.face_height
        right, down = self.from_pivot
        x = self.x - (
            np.float32(np.sin(pose.yaw)) * self.by_depth
            + np.float32(np.cos(pose.yaw) - 1) * self.from_centre[0]
            - np.float32(pose.roll) * down
            + np.float32(pose.tx * size) * self.weight
        )
        y = self.y - (
            np.float32(np.sin(pose.pitch)) * self.by_depth
            + np.float32(np.cos(pose.pitch) - 1) * self.from_centre[1]
            + np.float32(pose.roll) * right
            + np.float32(pose.ty * size) * self.weight
            - np.float32(pose.brow * BROW_RAISE * size) * self.brow
            - np.float32(pose.breath * BREATH_RISE * size) * self.shoulders
        )
        origin_x, origin_y = np.float32(self.box[0]), np.float32(self.box[1])
        return self._full(cv2.merge([(x - origin_x) * np.float32(scale), (y - origin_y) * np.float32(scale)]))

    def _lay_lattice(self) -> None:
        """Place nodes at the centres of LATTICE_PX squares, plus one all around for exact interpolation."""
        x0, y0, x1, y1 = self.box
        step = LATTICE_PX
        nodes_x = np.arange(-1, -(-(x1 - x0) // step) + 1, dtype=np.float32) * step + (step - 1) / 2 + x0
        nodes_y = np.arange(-1, -(-(y1 - y0) // step) + 1, dtype=np.float32) * step + (step - 1) / 2 + y0
        self.x, self.y = np.meshgrid(nodes_x, nodes_y)

    def _full(self, lattice: Array) -> Array:
        """Interpolate lattice values to every pixel of the box."""
        rows, columns = lattice.shape[:2]
        full = cv2.resize(lattice, (columns * LATTICE_PX, rows * LATTICE_PX), interpolation=cv2.INTER_LINEAR)
        x0, y0, x1, y1 = self.box
        return full[LATTICE_PX : LATTICE_PX + y1 - y0, LATTICE_PX : LATTICE_PX + x1 - x0]

    def _distance_to_edge(self) -> Array:
        x0, y0, x1, y1 = self.box
        sides = (self.x - x0, x1 - 1 - self.x, self.y - y0, y1 - 1 - self.y)
        return np.minimum.reduce(sides) - LATTICE_PX

    def _distance_to_others(self, face: Face, others: Sequence[Face]) -> Array:
        """How much farther the nearest other face is than this one, each distance in heights of its face."""

        def apart(one: Face) -> Array:
            (x, y), size = _middle(one)
            return np.hypot(self.x - x, self.y - y) / size

        nearest = [apart(other) for other in others]
        if not nearest:
            return np.full_like(self.x, BORDER)
        return np.minimum.reduce(nearest) - apart(face)

    def _depth(self, face: Face, size: float, radius: Array) -> Array:
        """Depth relative to the face's outline, px towards the camera: smoothed landmarks, and hair."""
        points, z = face.landmarks[:, :2], face.landmarks[:, 2]
        nearer = float(np.mean(z[list(topo.FACE_OVAL)])) - z
        spread = 2 * (0.09 * size) ** 2
        total, weights = np.zeros_like(self.x), np.full_like(self.x, 1e-3)
        for (x, y), value in zip(points[::2], nearer[::2], strict=True):
            near = np.exp(-((self.x[:1] - x) ** 2) / spread) * np.exp(-((self.y[:, :1] - y) ** 2) / spread)
            total += near * value
            weights += near
        known = np.clip(weights / 3, 0, 1)
        behind = BACK_OF_HEAD * size * smoothstep((radius - 0.45) / 0.7)
        return total / weights * known + behind * (1 - known)

    def _brow_weight(self, points: Array, size: float) -> Array:
        """1 on the brows, fading into the forehead above and to 0 at the lids below."""
        width = float(np.linalg.norm(points[topo.FACE_OVAL[8]] - points[topo.FACE_OVAL[28]]))
        weight = np.zeros_like(self.x)
        for brow, lid in ((topo.LEFT_BROW, topo.LEFT_EYE_UPPER), (topo.RIGHT_BROW, topo.RIGHT_EYE_UPPER)):
            x, y = points[list(brow)].mean(axis=0)
            to_lid = max(float(points[list(lid), 1].mean()) - y, 0.03 * size)
            down = np.where(self.y < y, ((self.y - y) / (0.09 * size)) ** 2, 2 * ((self.y - y) / to_lid) ** 2)
            weight += np.exp(-(((self.x - x) / (0.16 * width)) ** 2) - down)
        weight[weight < 1e-3] = 0
        return np.clip(weight, 0, 1).astype(np.float32)


def _middle(face: Face) -> tuple[Array, float]:
    """A head's middle, (2,) px, and its face's height, px."""
    points = face.landmarks[:, :2].astype(np.float32)
    size = float(np.linalg.norm(points[topo.CHIN] - points[topo.FOREHEAD]))
    return points[list(topo.FACE_OVAL)].mean(axis=0) - MouthFrame.of(points).down * 0.10 * size, size
