"""The mouth's interior: the cavity, the tongue, two rows of teeth, and the lips' shadow on them.

Teeth that the portrait shows are used and stay fixed to the head. Otherwise teeth are painted in its light.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from avatar.preview import topology as topo
from avatar.preview.face_detection import Face
from avatar.preview.pose import Articulation
from avatar.preview.render.curves import Array, lerp, smoothstep
from avatar.preview.render.lips import Lips, LipTargets, U
from avatar.preview.render.matte import DRAWN, flatness
from avatar.preview.render.mouth import MouthWarp

REACH = 1.3  # of the textures to each side, in half mouth widths
TALL = 0.95  # height of the textures, in mouth widths
COVER = 0.045  # height of the upper crowns hidden by the resting lip, in mouth widths
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
SKIN = np.array([1.0, 0.78, 0.66], np.float32)  # in white light, relative to its red
COLD = 0.4  # share of a bluish light that teeth take on, because pale skin looks like such a light
CONTACT_SHADE = 0.45
MOUTH_GLOW = np.array([0.12, -0.02, -0.04], np.float32)  # surrounding flesh warms the shadows
ENAMEL = np.array([1.0, 0.96, 0.88], np.float32)


@dataclass(frozen=True)
class Palette:
    """Colours of the mouth in the portrait's light; float32 RGB, 0..255.

    tooth: (193, 3) along lips.U, by the light there; cavity, tongue: (3,); bright: luma of the lit skin.
    """

    tooth: Array
    cavity: Array
    tongue: Array
    bright: float

    @classmethod
    def of(cls, image: Array, face: Face, lips: Lips) -> Palette:
        """Estimate the palette from the colours of skin and lips in image, uint8 (H, W, 3) RGB."""
        skin, lip_mask = _skin_and_lips(image, face)
        pixels = (image[skin > 0] if skin.any() else image.reshape(-1, 3)).astype(np.float32)
        lip = (
            np.median(image[lip_mask > 0], axis=0) if lip_mask.sum() > 8 else np.median(pixels, axis=0) * 0.8
        )
        lip = lip.astype(np.float32)
        bright = float(np.percentile(pixels @ LUMA, 88))

        near = np.maximum(_skin_along_mouth(image, skin, lips), 1)
        paleness = near.min() / max(float(near.max()), 1)
        skin_like = float(np.clip((1 - paleness) / (1 - SKIN.min()), 0, 1))  # a robot's white is not skin
        cast = near / SKIN**skin_like
        cast = cast / np.maximum(cast[:, :1], 1)
        cast = np.where(cast > 1, cast**COLD, cast)
        cast = cast / cast.max(axis=1, keepdims=True)
        drawn = flatness(image) >= DRAWN  # in drawings, teeth are white
        tooth = ENAMEL * lerp(1, np.clip(cast, 0.45, 1), 0.4 if drawn else 0.9)
        luma = near @ LUMA
        side = np.clip(luma / max(float(luma.mean()), 1), 0.55, 1.15)
        tooth = tooth * (0.93 * bright * side / (tooth @ LUMA))[:, None]
        limit = max(1.75 * float(lip @ LUMA), 0.35 * bright)  # teeth are not much brighter than lips
        tooth = tooth * (1.3 if drawn else min(1.0, limit / max(float((tooth @ LUMA).mean()), 1)))
        tooth = tooth * min(1.0, 240 / max(float(tooth.max()), 1))
        ambient = np.clip(bright / 190, 0.25, 1.15)
        flesh = np.array([165, 70, 75], np.float32) * ambient
        return cls(
            tooth.astype(np.float32),
            (np.array([26, 10, 14], np.float32) * ambient).astype(np.float32),
            (lerp(lip, flesh, 0.5) * 0.72).astype(np.float32),
            bright,
        )


def _skin_and_lips(image: Array, face: Face) -> tuple[Array, Array]:
    """Masks uint8 (H, W): the face without its mouth, and the lower lip."""
    points = face.landmarks[:, :2]
    skin, lip = np.zeros((2, *image.shape[:2]), np.uint8)
    cv2.fillConvexPoly(skin, points[list(topo.FACE_OVAL)].astype(np.int32), 1)
    upper, lower = list(topo.UPPER_LIP_OUTER), list(topo.LOWER_LIP_OUTER)
    cv2.fillPoly(skin, [np.concatenate([points[upper], points[lower][::-1]]).astype(np.int32)], 0)
    ring = np.concatenate([points[lower], points[list(topo.LOWER_LIP_INNER)][::-1]])
    cv2.fillPoly(lip, [ring.astype(np.int32)], 1)
    return skin, lip


def _skin_along_mouth(image: Array, skin: Array, lips: Lips) -> Array:
    """(193, 3): smoothed colour of the skin along the mouth, over lips.U."""
    u = np.clip(U.axis, -1, 1)
    x, y = lips.frame.image(lips.frame.from_u(u), np.interp(u, U.axis, lips.seam).astype(np.float32))
    reach = max(2.0, 0.25 * lips.frame.width)
    weighted = cv2.GaussianBlur(image.astype(np.float32) * skin[..., None], (0, 0), reach)
    weight = cv2.GaussianBlur(skin.astype(np.float32), (0, 0), reach)
    at = x.astype(np.float32)[None], y.astype(np.float32)[None]
    colour = cv2.remap(weighted, *at, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[0]
    share = cv2.remap(weight, *at, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[0]
    return colour / np.maximum(share, 1e-3)[:, None]


class Interior:
    """Paints the open mouth of one portrait."""

    def __init__(self, image: Array, face: Face, lips: Lips) -> None:
        self.lips = lips
        width_px = lips.frame.width
        self.palette = Palette.of(image, face, lips)
        self.scale = max(1.0, 96 / width_px)  # texture pixels per image pixel
        columns = round(REACH * width_px * self.scale) | 1
        rows = round(TALL * width_px * self.scale) | 1
        self.shape = rows, columns
        x = np.linspace(-REACH, REACH, columns, dtype=np.float32)[None]
        y = np.linspace(0, TALL, rows, dtype=np.float32)[:, None]
        sharp = 1.2 / (width_px * self.scale)
        light = np.stack([np.interp(x[0], U.axis, channel) for channel in self.palette.tooth.T], axis=-1)
        self.upper_teeth = _upper_teeth(x, y, sharp, light)
        self.lower_teeth = _lower_teeth(x, y, sharp, light)
        self.tongue = _tongue(x, y, self.palette.tongue)
        self.cavity = self.palette.cavity
        self.own = self._own_interior(image, x, y)

    def _own_interior(self, image: Array, x: Array, y: Array) -> Array | None:
        """Texture of the portrait's own teeth under the upper lip, (rows, columns, 4); None if none show."""
        lips, width_px = self.lips, self.lips.frame.width
        if lips.gap_px <= max(0.13 * width_px, 4.0):
            return None
        top = np.interp(x[0], U.axis, lips.upper_inner)[None]
        bottom = np.interp(x[0], U.axis, lips.lower_inner)[None]
        down = top + y * width_px
        image_x, image_y = lips.frame.image(lips.frame.from_u(x) * np.ones_like(down), down)
        texture = cv2.remap(
            image,
            image_x.astype(np.float32),
            image_y.astype(np.float32),
            cv2.INTER_CUBIC,
            borderMode=cv2.BORDER_REPLICATE,
        ).astype(np.float32)
        fade = np.clip(0.12 * (bottom - top), 1.0, 4.0)
        alpha = (
            np.clip(down - top + 0.5, 0, 1)
            * np.clip((bottom - 1.2 - down) / fade, 0, 1)
            * np.clip((1.02 - np.abs(x)) / 0.03, 0, 1)
        )
        seen = texture[alpha > 0.9]
        if len(seen) == 0:
            return None
        luma, chroma = seen.mean(axis=1), np.ptp(seen, axis=1)
        bright = self.palette.bright
        toothy = float(((luma > 0.62 * bright) & (chroma < 0.45 * bright)).mean())
        if toothy < 0.18 and lips.gap_px < 0.28 * width_px:
            return None
        darkest = seen[luma <= np.percentile(luma, 12)].mean(axis=0)
        self.cavity = lerp(self.cavity, darkest * 0.7, 0.8).astype(np.float32)
        return np.dstack([texture, alpha]).astype(np.float32)

    def paint(
        self, pixels: Array, person: Array, warp: MouthWarp, targets: LipTargets, articulation: Articulation
    ) -> None:
        """Paint into pixels, uint8 (h, w, 3), over the same box as the warp.

        person: uint8 (h, w), the person's share of each pixel, because a profile's mouth ends with the face.
        """
        self._darken_contact(pixels, person, warp, targets)
        if targets.gap_px < 0.4:
            return
        soft = max(1.0, 0.005 * self.lips.face_height)
        alpha = np.clip(warp.below_upper / soft + 0.15, 0, 1) * np.clip(warp.above_lower / soft + 0.15, 0, 1)
        rows, columns = np.flatnonzero(alpha.max(axis=1) > 0.01), np.flatnonzero(alpha.max(axis=0) > 0.01)
        if len(rows) == 0 or len(columns) == 0:
            return
        part = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        below_upper, above_lower, u = warp.below_upper[part], warp.above_lower[part], warp.u[part]
        colour = self._colour(below_upper, above_lower, u, targets, articulation)
        opaque = (alpha[part] * (person[part] * np.float32(1 / 255)))[..., None]
        under = pixels[part].astype(np.float32)
        pixels[part] = np.clip(under + (colour - under) * opaque + 0.5, 0, 255).astype(np.uint8)

    def _darken_contact(self, pixels: Array, person: Array, warp: MouthWarp, targets: LipTargets) -> None:
        """Draw the shade between closed lips that are apart in the portrait."""
        strength = CONTACT_SHADE * float(smoothstep(self.lips.gap_px / (0.03 * self.lips.face_height)))
        width = max(0.8, 0.004 * self.lips.face_height)
        if strength < 0.01 or targets.gap_px > 8 * width:
            return
        apart = np.abs(warp.below_upper) + np.abs(warp.above_lower)
        rows = np.flatnonzero(apart.min(axis=1) < 4 * width)
        if len(rows) == 0:
            return
        part = slice(rows[0], rows[-1] + 1)
        (source_u,) = U.read(targets.source_u[:, None], warp.u[part])
        on_lips = np.clip((0.95 - np.abs(source_u)) / 0.15, 0, 1) * (person[part] * np.float32(1 / 255))
        light = 1 - strength * on_lips * np.exp(-((apart[part] / (2 * width)) ** 2))
        pixels[part] = (pixels[part] * light[..., None]).astype(np.uint8)

    def _colour(
        self,
        below_upper: Array,
        above_lower: Array,
        u: Array,
        targets: LipTargets,
        articulation: Articulation,
    ) -> Array:
        """(h, w, 3) float32: colour of the interior at these distances from the lips, ignoring occlusion."""
        lips, width_px = self.lips, self.lips.frame.width
        curves = np.stack([targets.source_u, targets.teeth_top, targets.upper_inner], axis=1)
        source_u, own_top, lip = U.read(curves, u)
        y = below_upper + lip
        across = (source_u + REACH) / (2 * REACH) * (self.shape[1] - 1)
        per_px = (self.shape[0] - 1) / (TALL * width_px)

        def layer(under: Array, texture: Array, top: Array) -> Array:
            drawn = cv2.remap(texture, across, ((y - top) * per_px).astype(np.float32), cv2.INTER_LINEAR)
            return under + (drawn[..., :3] - under) * drawn[..., 3:]

        centre = np.clip(1 - np.abs(source_u), 0, 1)
        colour = self.cavity * (0.7 + 0.5 * centre)[..., None]
        # The dental arch follows the mouth's middle, bent only slightly by the lip.
        arch = lerp(float(np.interp(0, U.axis, lips.seam)), own_top, 0.35)
        raised = 0.10 * width_px * (1 + articulation.tongue)
        colour = layer(colour, self.tongue, arch + 0.78 * targets.jaw_px - raised)
        colour = layer(colour, self.lower_teeth, arch + 0.98 * targets.jaw_px + 0.015 * width_px)
        if self.own is None:
            colour = layer(colour, self.upper_teeth, arch - COVER * width_px)
        else:
            colour = layer(colour, self.own, own_top)
        shade = (
            (0.42 + 0.58 * smoothstep(below_upper / (0.055 * width_px)))
            * (0.70 + 0.30 * smoothstep(above_lower / (0.04 * width_px)))
            * (0.35 + 0.65 * smoothstep(centre / 0.40))
        )
        if self.own is not None:  # real teeth include their own shadow
            shade = lerp(shade, 1, 0.55)
        # Little light falls through narrow lips.
        shade = shade * lerp(0.72, 1, smoothstep(targets.gap_px / (0.045 * lips.face_height)))
        # Rounded lips protrude in front of the teeth and shade them.
        colour = lerp(colour, 1.5 * self.cavity, 0.50 * min(articulation.round, 1.0))
        shade = shade[..., None]
        return colour * (shade + (1 - shade) * MOUTH_GLOW)


def _upper_teeth(x: Array, y: Array, sharp: float, colour: Array) -> Array:
    """(rows, columns, 4): crowns that narrow and darken along the arch, rounded at the biting edge."""
    arch = np.arcsin(np.clip(x / 1.18, -1, 1)) / (np.pi / 2)
    tooth = 5.2 * arch
    from_centre = np.abs(tooth - np.round(tooth))
    between = smoothstep((from_centre - 0.40) / 0.10)
    odd = np.round(tooth) % 2 != 0
    crown = 0.155 * (1 - 0.30 * np.abs(arch) ** 1.6) * (1 - 0.04 * odd)
    edge = crown - 0.016 * (from_centre / 0.5) ** 3
    alpha = np.clip((edge - y) / sharp + 0.5, 0, 1) * np.clip((1.06 - np.abs(x)) / 0.10, 0, 1)
    shade = (
        (1 - 0.62 * np.abs(arch) ** 1.7)
        * (0.80 + 0.20 * smoothstep(y / 0.10))
        * (1 - 0.11 * between)
        * (1 - 0.12 * smoothstep((y - edge + 0.05) / 0.05))
    )
    return _texture(colour, shade, alpha)


def _lower_teeth(x: Array, y: Array, sharp: float, colour: Array) -> Array:
    """(rows, columns, 4): shorter and narrower crowns that stand up from the jaw."""
    arch = np.arcsin(np.clip(x / 1.18, -1, 1)) / (np.pi / 2)
    tooth = 6.5 * arch
    from_centre = np.abs(tooth - np.round(tooth))
    between = smoothstep((from_centre - 0.38) / 0.12)
    crown = 0.115 * (1 - 0.35 * np.abs(arch) ** 1.5)
    edge = 0.012 + 0.012 * (from_centre / 0.5) ** 2
    alpha = (
        np.clip((y - edge) / sharp + 0.5, 0, 1)
        * np.clip((crown + 0.1 - y) / 0.1, 0, 1)
        * np.clip((0.92 - np.abs(x)) / 0.15, 0, 1)
    )
    shade = (1 - 0.7 * np.abs(arch) ** 1.6) * 0.74 * (1 - 0.2 * between) * np.ones_like(y)
    return _texture(colour, shade, alpha)


def _tongue(x: Array, y: Array, colour: Array) -> Array:
    """(rows, columns, 4): a dome with a groove."""
    radius = np.sqrt((x / 0.72) ** 2 + ((y - 0.22) / 0.22) ** 2)
    shade = (0.55 + 0.45 * np.clip(1 - radius, 0, 1)) * (1 - 0.18 * np.exp(-((x / 0.06) ** 2)))
    return _texture(colour, shade, 0.9 * np.clip((1 - radius) / 0.18, 0, 1))


def _texture(colour: Array, shade: Array, alpha: Array) -> Array:
    """RGBA (rows, columns, 4) of colour, (3,) or (columns, 3)."""
    return np.dstack([colour * shade[..., None], alpha]).astype(np.float32)
