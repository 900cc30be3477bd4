"""The mouth's warp: the source position in the portrait of each pixel around the mouth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from avatar.preview.render.curves import Array, Box, bounding_box, lerp, smoothstep
from avatar.preview.render.lips import Lips, LipTargets, U

REACH = 2.35  # of the warp to either side, in half mouth widths
LATTICE = 1 / 90  # step of the lattice on which the warp is computed before interpolation, in face heights


@dataclass(frozen=True)
class MouthWarp:
    """One frame's warp over the mouth's box; every field float32 (h, w).

    shift_x, shift_y: added to the source coordinates, image px;
    below_upper, above_lower: distance into the opening from the upper and lower lip, px, negative outside;
    u: position along the mouth in half widths.
    """

    shift_x: Array
    shift_y: Array
    below_upper: Array
    above_lower: Array
    u: Array


class MouthWarper:
    """Turns lip targets into warps for one portrait."""

    def __init__(self, lips: Lips, width: int, height: int) -> None:
        self.lips = lips
        self.step = max(1, round(LATTICE * lips.face_height))
        frame = lips.frame
        corners = [
            frame.image(x, y)
            for x in (-REACH * frame.half_left, REACH * frame.half_right)
            for y in (lips.nose_y - 2, lips.neck_y + 2)
        ]
        self.box: Box = bounding_box(np.array(corners), width, height)

    def warp(
        self, targets: LipTargets, places: Array, to_image: Callable[[Array], tuple[Array, Array]]
    ) -> MouthWarp:
        """The warp at the source positions of the box's pixels in the unmoved portrait.

        places: float32 (h, w, 2), which to_image converts to x, y in image px.
        """
        height, width = places.shape[:2]
        rows = np.minimum(np.arange(0, height + self.step, self.step), height - 1)
        columns = np.minimum(np.arange(0, width + self.step, self.step), width - 1)
        coarse = self._coarse(targets, *to_image(places[np.ix_(rows, columns)]))
        scale = np.array([[1 / self.step, 0, 0], [0, 1 / self.step, 0]], np.float32)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        fields = [
            cv2.warpAffine(part, scale, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)
            for part in (coarse[..., :3], coarse[..., 3:])
        ]
        across, upper, lower = cv2.split(fields[0])
        below_upper, above_lower, u = cv2.split(fields[1])
        down = np.where(below_upper < above_lower, upper, lower)
        frame = self.lips.frame
        return MouthWarp(
            across * frame.right[0] + down * frame.down[0],
            across * frame.right[1] + down * frame.down[1],
            below_upper,
            above_lower,
            u,
        )

    def _coarse(self, t: LipTargets, x: Array, y: Array) -> Array:
        """(h, w, 6): shift across; shift down of the upper and of the lower layer; the two distances; u."""
        lips, frame = self.lips, self.lips.frame
        dx, dy = x - frame.origin[0], y - frame.origin[1]
        u = frame.u(dx * frame.right[0] + dy * frame.right[1])
        y = dx * frame.down[0] + dy * frame.down[1]
        curves = np.stack(
            [
                t.source_u - U.axis,
                t.upper_inner,
                t.upper_outer,
                t.lower_inner,
                t.lower_outer,
                t.source_upper_inner - t.upper_inner,
                t.source_upper_outer - t.upper_outer,
                t.source_lower_inner - t.lower_inner,
                t.source_lower_outer - t.lower_outer,
                t.chin,
            ],
            axis=1,
        )
        across, upper, upper_outer, lower, lower_outer, *moves = U.read(curves, u)
        from_upper, from_upper_outer, from_lower, from_lower_outer, chin_drop = moves

        reach = np.where(y < 0, 0.69 * abs(lips.nose_y) + 1e-3, 0.60 * lips.chin_y)
        across = across * np.where(u < 0, frame.half_left, frame.half_right) * np.exp(-((y / reach) ** 2))

        top = np.minimum(lips.nose_y, upper_outer - 2)
        rise = smoothstep((y - top) / np.maximum(upper_outer - top, 1))
        on_lip = smoothstep((y - upper_outer) / np.maximum(upper - upper_outer, 0.7))
        above = np.where(y < upper_outer, from_upper_outer * rise, lerp(from_upper_outer, from_upper, on_lip))

        chin = np.maximum(lips.chin_y + chin_drop, lower_outer + 3)
        on_lip = smoothstep((y - lower) / np.maximum(lower_outer - lower, 0.7))
        to_chin = smoothstep((y - lower_outer) / np.maximum(chin - lower_outer, 1))
        to_neck = smoothstep((y - chin) / max(lips.neck_y - lips.chin_y, 1))
        below = np.where(
            y < lower_outer,
            lerp(from_lower, from_lower_outer, on_lip),
            np.where(y < chin, lerp(from_lower_outer, -chin_drop, to_chin), -chin_drop * (1 - to_neck)),
        )
        return np.stack([across, above, below, y - upper, lower - y, u], axis=-1).astype(np.float32)
