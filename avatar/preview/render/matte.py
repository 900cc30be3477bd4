"""Split a portrait into person and background, so that the background stays still while the head moves."""

from __future__ import annotations

import logging

import cv2
import numpy as np

from avatar.preview import topology as topo
from avatar.preview.face_detection import Face
from avatar.preview.models import session
from avatar.preview.render.curves import Array, Box, smoothstep

MODEL = "person_segmentation"
MODEL_PX = 256
FIELD_OF_VIEW = 3.2  # side of the model's input square, in face heights
TRUSTED = 0.75  # minimum mean opacity on the face; below, the matte is wrong
LARGEST_PERSON = 0.85  # share of the box; more means that person and background have the same colours
DRAWN = 0.75  # flatness from which an image is a drawing, for which colours work better than the network
CUT_OUT_PX = 160  # longer side of the image that GrabCut works on

log = logging.getLogger(__name__)


class Layers:
    """The pixels of a box as two layers, person over background.

    plate: uint8 (h, w, 3), the background, filled in for a short distance behind the person;
    person: uint8 (h, w, 4), the person's colour premultiplied by opacity, and the opacity; composited over
    the plate it reproduces the portrait.
    separate: False if person and background cannot be distinguished; then everything is "person".
    """

    def __init__(self, image: Array, face: Face, box: Box) -> None:
        x0, y0, x1, y1 = box
        pixels = np.ascontiguousarray(image[y0:y1, x0:x1])
        points = face.landmarks[:, :2] - np.array([x0, y0], np.float32)
        size = float(np.linalg.norm(points[topo.CHIN] - points[topo.FOREHEAD]))
        oval = np.zeros(pixels.shape[:2], np.uint8)
        cv2.fillConvexPoly(oval, points[list(topo.FACE_OVAL)].astype(np.int32), 1)
        matte = _person(pixels, points, size, oval)
        self.separate = matte is not None
        if matte is None:
            log.info(
                "person and background cannot be distinguished; the background near the head moves with it"
            )
            self.plate = pixels
            self.person = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
            return
        matte = _cleaned(matte, oval, size)
        matte = np.clip(
            _guided(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), matte, max(2, round(0.02 * size))), 0, 1
        )
        matte = np.maximum(
            smoothstep((matte - 0.08) / 0.84), cv2.GaussianBlur(oval.astype(np.float32), (0, 0), 1)
        )
        self.plate = _filled_behind(pixels, matte, size)
        matte = _consistent(pixels, self.plate, matte)
        opacity = np.ceil(255 * matte).astype(np.uint8)
        colour = cv2.subtract(pixels, background_share(self.plate, opacity))
        self.person = np.dstack([colour, opacity])


def background_share(plate: Array, opacity: Array) -> Array:
    """The visible part of the background: plate uint8 (h, w, 3) times 1 − opacity, uint8 (h, w)."""
    return cv2.multiply(plate, cv2.cvtColor(cv2.bitwise_not(opacity), cv2.COLOR_GRAY2RGB), scale=1 / 255)


def _person(pixels: Array, points: Array, size: float, oval: Array) -> Array | None:
    """float32 (h, w): share of person in each pixel, or None if neither method gives a credible one.

    points: landmarks (468, 2) in pixels; size: face height, px; oval: uint8 mask of the face.
    """
    if flatness(pixels) < DRAWN:
        matte = _segment(pixels, points, size)
        if matte[oval > 0].mean() >= TRUSTED:
            return matte
    matte = _cut_out(pixels, points, size)
    return matte if matte[oval > 0].mean() >= TRUSTED and matte.mean() <= LARGEST_PERSON else None


def flatness(pixels: Array) -> float:
    """Share of pixels that equal their neighbours: up to 0.73 in photographs, from 0.76 in flat drawings."""
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.int16)
    across, down = np.abs(np.diff(grey, axis=1))[:-1], np.abs(np.diff(grey, axis=0))[:, :-1]
    return float((np.maximum(across, down) <= 1).mean())


def _cut_out(pixels: Array, points: Array, size: float) -> Array:
    """float32 (h, w): the region around the face with its colours, by GrabCut on a small copy."""
    scale = CUT_OUT_PX / max(pixels.shape[:2])
    small = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    points, size = points * scale, size * scale
    y, x = np.indices(small.shape[:2], np.float32)
    oval = points[list(topo.FACE_OVAL)]
    chin = points[topo.CHIN]
    dx, dy = x - oval[:, 0].mean(), y - (oval[:, 1].mean() - 0.1 * size)
    radius = np.hypot(dx / (0.9 * size), dy / np.where(dy > 0, 1.25 * size, 0.95 * size))
    guess = np.full(small.shape[:2], cv2.GC_PR_BGD, np.uint8)
    guess[(radius < 0.85) | ((y > chin[1]) & (np.abs(x - chin[0]) < 0.45 * size))] = cv2.GC_PR_FGD
    guess[(radius > 1.45) & (y < chin[1])] = cv2.GC_BGD
    cv2.fillConvexPoly(guess, oval.astype(np.int32), cv2.GC_FGD)
    cv2.setRNGSeed(0)  # GrabCut starts from a random clustering
    everywhere = (0, 0, small.shape[1], small.shape[0])
    cv2.grabCut(small, guess, everywhere, np.zeros((1, 65)), np.zeros((1, 65)), 4, cv2.GC_INIT_WITH_MASK)
    person = ((guess == cv2.GC_FGD) | (guess == cv2.GC_PR_FGD)).astype(np.float32)
    return cv2.resize(person, pixels.shape[1::-1], interpolation=cv2.INTER_LINEAR)


def _segment(pixels: Array, points: Array, size: float) -> Array:
    """float32 (h, w): share of person in each pixel, by the vendored segmentation network."""
    scale = MODEL_PX / (FIELD_OF_VIEW * size)
    centre = points.mean(axis=0)
    shift = np.array([0.5, 0.46]) * MODEL_PX - centre * scale
    to_model = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
    source = cv2.GaussianBlur(pixels, (0, 0), 0.4 / scale) if scale < 0.6 else pixels
    looked_at = cv2.warpAffine(source, to_model, (MODEL_PX, MODEL_PX), borderMode=cv2.BORDER_REPLICATE)
    x = (looked_at.astype(np.float32) / 255).transpose(2, 0, 1)[None]
    share = session(MODEL).run(None, {"input": x})[0].reshape(MODEL_PX, MODEL_PX)
    height, width = pixels.shape[:2]
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(share, to_model, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)


def _cleaned(matte: Array, oval: Array, size: float) -> Array:
    """The matte of this person alone: the component that contains the face, with small holes closed."""
    solid = (matte > 0.5).astype(np.uint8) | oval
    _, labels = cv2.connectedComponents(solid)
    own = (labels == np.bincount(labels[oval > 0]).argmax()).astype(np.uint8)
    near = cv2.dilate(own, np.ones((3, 3), np.uint8), iterations=max(1, round(0.03 * size)))
    return np.where(near > 0, matte, 0).astype(np.float32)


def _guided(guide: Array, matte: Array, radius: int) -> Array:
    """The matte with its edges aligned to those of the guide, uint8 (h, w).

    Source: He, Sun, Tang, "Guided image filtering", TPAMI 2013.
    """
    guide = guide.astype(np.float32) / 255
    window = (2 * radius + 1, 2 * radius + 1)

    def mean(x: Array) -> Array:
        return cv2.blur(x, window)

    mean_guide, mean_matte = mean(guide), mean(matte)
    slope = (mean(guide * matte) - mean_guide * mean_matte) / (mean(guide * guide) - mean_guide**2 + 1e-4)
    offset = mean_matte - slope * mean_guide
    return mean(slope) * guide + mean(offset)


def _filled_behind(pixels: Array, matte: Array, size: float) -> Array:
    """The background with the person inpainted from the surroundings, coarse to fine."""
    clear = (matte < 0.02).astype(np.uint8)
    seen = cv2.erode(clear, np.ones((3, 3), np.uint8), iterations=max(1, round(0.008 * size)))
    levels: list[tuple[Array, Array]] = []
    colour: Array = pixels.astype(np.float32) * seen[..., None]
    weight: Array = seen.astype(np.float32)
    while min(weight.shape) > 4:
        levels.append((colour, weight))
        colour, weight = cv2.pyrDown(colour), cv2.pyrDown(weight)
    fill: Array = colour / np.maximum(weight, 1e-3)[..., None]
    for colour, weight in reversed(levels):
        fill = cv2.pyrUp(fill, dstsize=weight.shape[::-1])
        share = np.clip(weight * 6, 0, 1)[..., None]
        fill = fill + (colour / np.maximum(weight, 1e-3)[..., None] - fill) * share
    return np.where(seen[..., None] > 0, pixels, np.clip(np.round(fill), 0, 255).astype(np.uint8))


def _consistent(pixels: Array, plate: Array, matte: Array) -> Array:
    """The matte, raised where needed for any colour over the plate to be able to give the pixel's colour."""
    pixel, behind = pixels.astype(np.float32), plate.astype(np.float32)
    darker = (behind - pixel) / np.maximum(behind, 1)
    brighter = (pixel - behind) / np.maximum(255 - behind, 1)
    least = np.maximum(darker, brighter).max(axis=2)
    return np.clip(np.maximum(matte, least), 0, 1)
