"""Frames of a talking portrait: one remap each, composed of head, mouth and eyes, laid over a still background."""

from __future__ import annotations

import cv2
import numpy as np

from avatar.preview.face import Face
from avatar.preview.pose import Articulation, Pose
from avatar.preview.render.eyes import eyes_of
from avatar.preview.render.head import HeadField
from avatar.preview.render.interior import Interior
from avatar.preview.render.lips import Lips, lip_targets
from avatar.preview.render.matte import Layers, background_share
from avatar.preview.render.mouth import MouthWarper
from avatar.preview.render.shaping import Array, grown, inside

SUPERSAMPLING = 2  # the source is enlarged, so that moving by part of a pixel does not blur
PERSON_MARGIN = 0.08  # how far beyond its outline the person may move, in face heights
MOTION_MARGIN = 0.06  # how far mouth and eyes travel with the head, in face heights


class Renderer:
    """Draws frames of one portrait. It keeps nothing from one frame to the next.

    head_mask: bool (H, W); pixels outside it are the portrait's own in every frame.
    """

    def __init__(self, image: Array, face: Face) -> None:
        """image: uint8 (H, W, 3) RGB, at the size of the frames; face: in its pixels."""
        height, width = image.shape[:2]
        self.image = np.ascontiguousarray(image)
        self.head = HeadField(face, width, height)
        self.box = self.head.box
        self.lips = Lips(face)
        self.mouth = MouthWarper(self.lips, width, height)
        self.interior = Interior(self.image, face, self.lips)
        self.eyes = eyes_of(face, width, height)
        margin = round(4 + MOTION_MARGIN * self.head.face_height)
        self.mouth_box = grown(self.mouth.box, margin, self.box)
        self.eye_boxes = [grown(eye.box, margin, self.box) for eye in self.eyes]
        layers = Layers(self.image, face, self.box)
        self.layered, self.plate = layers.separate, layers.plate
        self.source = _enlarged(layers.person)
        self._mask(layers)

    def _mask(self, layers: Layers) -> None:
        movable = self.head.support > 0
        movable[inside(self.mouth_box, self.box)] = True
        for box in self.eye_boxes:
            movable[inside(box, self.box)] = True
        if layers.separate:
            margin = 2 * round(PERSON_MARGIN * self.head.face_height) + 1
            person = (layers.person[..., 3] > 0).astype(np.uint8)
            movable &= cv2.dilate(person, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (margin, margin))) > 0
        self.head_mask = np.zeros(self.image.shape[:2], bool)
        self.head_mask[self.box[1] : self.box[3], self.box[0] : self.box[2]] = movable
        self.still = np.ascontiguousarray(~movable)

    def frame(self, articulation: Articulation, pose: Pose) -> Array:
        """The portrait with this mouth and pose; uint8 (H, W, 3) RGB, the same for the same arguments."""
        x0, y0, x1, y1 = self.box
        places = self.head.places(pose)
        source = places - np.float32([x0, y0])
        for eye, box in zip(self.eyes, self.eye_boxes, strict=True):
            part = inside(box, self.box)
            shift = eye.shift(pose, places[part])
            if shift is not None:
                source[part] += shift
        targets = lip_targets(self.lips, articulation)
        part = inside(self.mouth_box, self.box)
        warp = self.mouth.warp(targets, places[part])
        source[part][..., 0] += warp.shift_x
        source[part][..., 1] += warp.shift_y
        source *= SUPERSAMPLING
        drawn = cv2.remap(self.source, source, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        pixels = cv2.cvtColor(drawn, cv2.COLOR_RGBA2RGB)
        if self.layered:
            pixels = cv2.add(pixels, background_share(self.plate, drawn[..., 3]))
        self.interior.paint(pixels[part], warp, targets, articulation)
        frame = self.image.copy()
        original = frame[y0:y1, x0:x1]
        np.copyto(original, pixels, where=~self.still[..., None])
        return frame


def _enlarged(layer: Array) -> Array:
    """uint8 (h, w, 4) → (2h - 1, 2w - 1, 4): every pixel kept, cubic between them."""
    height, width = layer.shape[:2]
    size = ((width - 1) * SUPERSAMPLING + 1, (height - 1) * SUPERSAMPLING + 1)
    scale = np.array([[1 / SUPERSAMPLING, 0, 0], [0, 1 / SUPERSAMPLING, 0]], np.float32)
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(layer, scale, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
