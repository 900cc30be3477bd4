"""The portrait's lips as curves: measured once, then moved according to an articulation.

Everything is in the mouth's own frame: origin between the lips, x along the mouth, y towards the chin, in
pixels. u is x in half mouth widths, per side, so that a turned head too has its corners at -1 and 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from avatar.preview import topology as topo
from avatar.preview.face_detection import Face
from avatar.preview.pose import Articulation
from avatar.preview.render.curves import Array, Rows, lerp, smoothstep

U = Rows(-3.0, 3.0, 193)
WIDEST_GAP = 0.105  # inner lip gap at open = 1, in face heights
LOWER_LIP_SHARE = 0.80  # share of the gap by which the lower lip drops; the upper lip rises by the rest


@dataclass(frozen=True)
class MouthFrame:
    """The mouth's position, orientation and size.

    origin: (2,) px; right, down: (2,) unit vectors; half_left, half_right: half widths, px.
    """

    origin: Array
    right: Array
    down: Array
    half_left: float
    half_right: float

    @classmethod
    def of(cls, points: Array) -> MouthFrame:
        """From landmarks (468, 2) px; angled halfway between mouth and eyes, so a wry smile stays wry."""
        mouth = points[topo.MOUTH_RIGHT] - points[topo.MOUTH_LEFT]
        eyes = points[topo.RIGHT_EYE_CORNERS[1]] - points[topo.LEFT_EYE_CORNERS[0]]
        angle = (np.arctan2(mouth[1], mouth[0]) + np.arctan2(eyes[1], eyes[0])) / 2
        right = np.array([np.cos(angle), np.sin(angle)], np.float32)
        down = np.array([-right[1], right[0]], np.float32)
        origin = (points[topo.INNER_LIP_TOP] + points[topo.INNER_LIP_BOTTOM]) / 2
        left = max(-float((points[topo.MOUTH_LEFT] - origin) @ right), 3.0)
        other = max(float((points[topo.MOUTH_RIGHT] - origin) @ right), 3.0)
        least = 0.45 * max(left, other)
        return cls(origin.astype(np.float32), right, down, max(left, least), max(other, least))

    @property
    def width(self) -> float:
        return self.half_left + self.half_right

    def local(self, points: Array) -> Array:
        """Image points (..., 2) → mouth frame (..., 2), px."""
        offset = points - self.origin
        return np.stack([offset @ self.right, offset @ self.down], -1).astype(np.float32)

    def image(self, x: Any, y: Any) -> tuple[Array, Array]:
        """Mouth frame x, y (arrays or numbers) → image x, y, px."""
        return (
            self.origin[0] + x * self.right[0] + y * self.down[0],
            self.origin[1] + x * self.right[1] + y * self.down[1],
        )

    def u(self, x: Array) -> Array:
        return np.where(x < 0, x / np.float32(self.half_left), x / np.float32(self.half_right))

    def from_u(self, u: Array) -> Array:
        return np.where(u < 0, u * np.float32(self.half_left), u * np.float32(self.half_right))


class Lips:
    """The lips in the portrait; curves are float32 (193,) over U, y in the mouth frame, px."""

    def __init__(self, face: Face) -> None:
        points = face.landmarks[:, :2].astype(np.float32)
        self.frame = MouthFrame.of(points)
        local = self.frame.local(points)
        self.face_height = float(np.linalg.norm(points[topo.CHIN] - points[topo.FOREHEAD]))
        self._measure_curves(local)
        gap = self.lower_inner - self.upper_inner
        self.gap_px = float(gap.max())
        # Where lips are parted, move their edges slightly into the flesh, or teeth would stick to them.
        inset = np.minimum(0.15 * gap, 0.007 * self.face_height)
        self.upper_edge, self.lower_edge = self.upper_inner - inset, self.lower_inner + inset
        eyes = points[[topo.LEFT_EYE_CORNERS[0], topo.RIGHT_EYE_CORNERS[1]]]
        eye_span = max(float(np.linalg.norm(eyes[1] - eyes[0])), 1.0)
        self.smile = float(np.clip((self.frame.width / eye_span - 0.60) / 0.18, 0, 1))
        self.gape = float(np.clip((self.gap_px / self.face_height - 0.10) / 0.10, 0, 1))
        self.seam = self._closed_line()
        self.jaw_drop_px = 0.92 * float((self.lower_inner - self.seam).max())
        self.nose_y = float(local[topo.NOSE_BASE, 1])
        self.chin_y = max(
            float(local[topo.CHIN, 1]), float(self.lower_outer.max()) + 0.125 * self.frame.width
        )
        reach = float((self.lower_inner - self.seam).max())
        self.neck_y = self.chin_y + max(0.20 * self.face_height, 1.8 * reach)  # a steeper warp would fold

    def _measure_curves(self, local: Array) -> None:
        def curve(indices: tuple[int, ...]) -> Array:
            points = local[list(indices)]
            return U.curve(self.frame.u(points[:, 0]), points[:, 1])

        upper, lower = curve(topo.UPPER_LIP_INNER), curve(topo.LOWER_LIP_INNER)
        middle = (upper + lower) / 2
        upper, lower = np.minimum(upper, middle), np.maximum(lower, middle)
        corners = self.frame.u(local[[topo.UPPER_LIP_INNER[0], topo.UPPER_LIP_INNER[-1]], 0])
        self.inner_left, self.inner_right = min(float(corners[0]), -0.2), max(float(corners[1]), 0.2)
        open_part = smoothstep(np.minimum(U.axis - corners[0], corners[1] - U.axis) / 0.10)
        upper, lower = middle + (upper - middle) * open_part, middle + (lower - middle) * open_part
        self.upper_inner, self.lower_inner = _smoothed(upper), _smoothed(lower)
        self.upper_outer = np.minimum(_smoothed(curve(topo.UPPER_LIP_OUTER)), self.upper_inner - 0.5)
        self.lower_outer = np.maximum(_smoothed(curve(topo.LOWER_LIP_OUTER)), self.lower_inner + 0.5)

    def _closed_line(self) -> Array:
        """The line where closed lips meet: slightly below the upper lip, which hardly moves in speech."""
        gap = self.lower_inner - self.upper_inner
        line = self.upper_inner + np.minimum(0.45 * gap, 0.016 * self.face_height)
        level = float(line[np.abs(U.axis) < 1].mean())
        agape = max(self.gape, float(np.clip((self.gap_px / self.frame.width - 0.20) / 0.25, 0, 1)))
        flatten = 0.65 * agape * smoothstep((1.9 - np.abs(U.axis)) / 0.9)  # an open mouth's corners hang down
        return lerp(line, level, flatten).astype(np.float32)


@dataclass(frozen=True)
class LipTargets:
    """Target lips of one frame; curves float32 (193,) over U, y in the mouth frame, px.

    upper_inner … lower_outer: target edges; source_*: the portrait's edges that move there;
    source_u: the portrait's u shown at each u; teeth_top: where its own teeth begin under the upper lip;
    chin: drop of the chin along u, px; jaw_px: drop of the lower jaw from closed; gap_px: widest inner gap.
    """

    source_u: Array
    upper_inner: Array
    upper_outer: Array
    lower_inner: Array
    lower_outer: Array
    source_upper_inner: Array
    source_upper_outer: Array
    source_lower_inner: Array
    source_lower_outer: Array
    teeth_top: Array
    chin: Array
    jaw_px: float
    gap_px: float


def lip_targets(lips: Lips, a: Articulation) -> LipTargets:
    """The lips moved to articulation `a`. Targets are absolute, so an open or smiling mouth closes too."""
    opening, widening = float(np.clip(a.open, 0, 1.2)), max(a.wide, 0.0)
    source_u = _source_u(lips, a)
    height = lips.face_height
    gap = opening * WIDEST_GAP * height
    profile = _gap_profile(lips, source_u, a.round)

    def at_source(curve: Array) -> Array:
        return U.resample(curve, source_u)

    upper_inner, lower_inner = at_source(lips.upper_edge), at_source(lips.lower_edge)
    upper_outer, lower_outer = at_source(lips.upper_outer), at_source(lips.lower_outer)
    seam = _relaxed_seam(lips, source_u, 0.35 * a.round + 0.12 * opening)

    raise_px, lower_px = 0.018 * height * a.upper, 0.014 * height * a.lower
    to_upper = seam - ((1 - LOWER_LIP_SHARE) * gap + raise_px) * profile
    to_lower = seam + (LOWER_LIP_SHARE * gap + lower_px - 0.006 * height * a.ff) * profile
    to_lower = np.maximum(to_lower, to_upper)
    stretch = 0.10 * opening + 0.05 * widening
    pout = a.round * (1 + 1.5 * lips.smile)  # a smile stretches the lips thin
    upper_thickness = 1 - 0.30 * a.press + 0.16 * pout - stretch
    lower_thickness = 1 - 0.30 * a.press + 0.18 * pout - stretch - 0.45 * a.ff
    to_upper_outer = to_upper - (upper_inner - upper_outer) * upper_thickness
    to_lower_outer = to_lower + (lower_outer - lower_inner) * lower_thickness

    jaw = 0.74 * gap + 0.004 * height * a.lower
    distance = np.abs(source_u)
    chin = (jaw - lips.jaw_drop_px) * np.exp(-((distance / 1.55) ** 4))
    sag = np.where(distance < 1, distance**2, np.exp(-(((distance - 1) / 0.45) ** 2)))
    sag = 0.16 * LOWER_LIP_SHARE * gap * sag  # corners follow the jaw slightly
    return LipTargets(
        source_u=source_u,
        upper_inner=_f32(to_upper + sag),
        upper_outer=_f32(to_upper_outer + sag),
        lower_inner=_f32(to_lower + sag),
        lower_outer=_f32(to_lower_outer + sag),
        source_upper_inner=upper_inner,
        source_upper_outer=upper_outer,
        source_lower_inner=lower_inner,
        source_lower_outer=lower_outer,
        teeth_top=at_source(lips.upper_inner),
        chin=_f32(chin),
        jaw_px=float(jaw),
        gap_px=float(gap + raise_px + lower_px),
    )


def _source_u(lips: Lips, a: Articulation) -> Array:
    """The portrait's u to show at each u: corners are moved apart or together, fading out over the cheeks."""
    draw = 0.115 * a.wide * (1 - 0.6 * lips.smile) - (0.27 + 0.05 * lips.smile) * a.round - 0.05 * lips.smile
    corner, distance = 1 + draw, np.abs(U.axis)
    share = np.where(distance < corner, distance / corner, 1 - smoothstep((distance - corner) / 1.25))
    return _f32(U.axis - draw * np.sign(U.axis) * share)


def _gap_profile(lips: Lips, source_u: Array, rounding: float) -> Array:
    """The opening's profile along the mouth: 1 in the middle, 0 at the inner corners."""
    place = np.where(source_u < 0, source_u / -lips.inner_left, source_u / lips.inner_right)
    arch = np.clip(1 - np.abs(place) ** (2.2 - 0.5 * rounding), 0, 1) ** (0.88 - 0.20 * rounding)
    if lips.gap_px > 0.10 * lips.frame.width:  # an open mouth in the portrait gives a better profile
        own = np.clip((lips.lower_inner - lips.upper_inner) / lips.gap_px, 0, 1)
        arch = lerp(arch, U.resample(own, source_u), 0.6 * (1 - 0.7 * rounding))
    return _f32(arch)


def _relaxed_seam(lips: Lips, source_u: Array, amount: float) -> Array:
    """The closed line, with a smile's raised corners lowered by `amount`."""
    seam = U.resample(lips.seam, source_u)
    centre = float(np.interp(0, U.axis, lips.seam))
    distance = np.abs(source_u)
    weight = amount * np.clip(distance, 0, 1) * np.clip((2.4 - distance) / 1.4, 0, 1)
    return lerp(seam, centre + 0.15 * (seam - centre), weight)


def _smoothed(curve: Array) -> Array:
    kernel = np.array([1, 2, 3, 2, 1], np.float32) / 9
    return np.convolve(np.pad(curve, 2, "edge"), kernel, "valid").astype(np.float32)


def _f32(curve: Array) -> Array:
    return curve.astype(np.float32)
