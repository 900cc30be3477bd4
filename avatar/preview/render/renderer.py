"""Frames of a talking portrait: head, mouth and eyes combined in one remap, over a still background."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from avatar.errors import BadInput
from avatar.preview.face_detection import Face
from avatar.preview.pose import Articulation, Pose
from avatar.preview.render.curves import Array, Box, grown, inside
from avatar.preview.render.eyes import eyes_of
from avatar.preview.render.head import HeadField
from avatar.preview.render.lips import Lips, lip_targets
from avatar.preview.render.matte import Layers, background_share
from avatar.preview.render.mouth import MouthWarper
from avatar.preview.render.mouth_interior import Interior

SUPERSAMPLING = 2  # the source is enlarged, so that subpixel motion does not blur
PERSON_MARGIN = 0.08  # distance that the person may move beyond the outline, in face heights
MOTION_MARGIN = 0.06  # distance that mouth and eyes may move with the head, in face heights
TURN_SLACK = 0.02  # extra distance that their parts may move compared with their middle, in face heights


class Renderer:
    """Draws frames of one portrait, without state between frames.

    head_mask: bool (H, W); pixels outside it are the portrait's in every frame.
    """

    def __init__(self, image: Array, face: Face, others: Sequence[Face] = ()) -> None:
        """image: uint8 (H, W, 3) RGB, at the size of the frames; face: in pixels of image.

        others: the picture's other faces; whatever is nearer to one of them stays as it is.
        Raises: BadInput if the mouth lies outside the image.
        """
        height, width = image.shape[:2]
        self.image = np.ascontiguousarray(image)
        self.head = HeadField(face, width, height, others)
        self.box = self.head.box
        self.lips = Lips(face)
        self.mouth = MouthWarper(self.lips, width, height)
        x, y = self.lips.frame.origin
        if not (0 <= x < width and 0 <= y < height):
            raise BadInput("The mouth lies outside the portrait.", "Place its points on the picture.")
        self.interior = Interior(self.image, face, self.lips)
        self.eyes = eyes_of(self.image, face)
        margin = round(4 + MOTION_MARGIN * self.head.face_height)
        self.feature_boxes = [
            grown(box, margin, self.box) for box in (self.mouth.box, *(e.box for e in self.eyes))
        ]
        layers = Layers(self.image, face, self.box)
        self.layered, self.plate = layers.separate, layers.plate
        self.source = _enlarged(layers.person)
        self._mask(layers)

    def _mask(self, layers: Layers) -> None:
        movable = self.head.support > 0
        for box in self.feature_boxes:
            movable[inside(box, self.box)] = True
        movable &= self.head.territory > 0
        if layers.separate:
            margin = 2 * round(PERSON_MARGIN * self.head.face_height) + 1
            person = (layers.person[..., 3] > 0).astype(np.uint8)
            movable &= cv2.dilate(person, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (margin, margin))) > 0
        self.head_mask = np.zeros(self.image.shape[:2], bool)
        self.head_mask[self.box[1] : self.box[3], self.box[0] : self.box[2]] = movable
        self.movable = movable.astype(np.uint8)

    def frame(self, articulation: Articulation, pose: Pose, onto: Array | None = None) -> Array:
        """Draw the portrait with this mouth and pose, uint8 (H, W, 3) RGB; the result is deterministic.

        onto: a frame in which other faces are drawn, and this one is to be; None: begin with the portrait.
        """
        source = self.head.places(pose, SUPERSAMPLING)
        eyes = []
        for eye in self.eyes:
            part = self._now_at(eye.box, source)
            if source[part].size and (eye_warp := eye.warp(pose, *self._places(source[part]))) is not None:
                ball = source[part].copy()
                self._move(ball, eye_warp.ball_x, eye_warp.ball_y)
                self._move(source[part], eye_warp.skin_x, eye_warp.skin_y)
                eyes.append((part, eye_warp, ball))
        targets = lip_targets(self.lips, articulation)
        part = self._now_at(self.mouth.box, source)
        warp = self.mouth.warp(targets, source[part], self._places)
        self._move(source[part], warp.shift_x, warp.shift_y)
        drawn = self._draw(source)
        pixels = cv2.cvtColor(drawn, cv2.COLOR_RGBA2RGB)
        if self.layered:
            pixels = cv2.add(pixels, background_share(self.plate, drawn[..., 3]))
        for eye_part, eye_warp, ball in eyes:
            eye_warp.paint(pixels[eye_part], self._draw(ball)[..., :3])
        self.interior.paint(pixels[part], drawn[..., 3][part], warp, targets, articulation)
        frame = self.image.copy() if onto is None else onto
        x0, y0, x1, y1 = self.box
        cv2.copyTo(pixels, self.movable, frame[y0:y1, x0:x1])
        return frame

    def _draw(self, source: Array) -> Array:
        """The person's layer, uint8 (h, w, 4), sampled at positions in the enlarged source."""
        flags = cv2.INTER_LINEAR
        return cv2.remap(self.source, source, None, flags, borderMode=cv2.BORDER_REPLICATE)  # type: ignore[call-overload]

    def _now_at(self, box: Box, source: Array) -> tuple[slice, slice]:
        """Row and column slices of this frame to which the portrait's `box` has moved with the head."""
        x0, y0, x1, y1 = grown(box, 0, self.box)
        x = min((x0 + x1) // 2 - self.box[0], source.shape[1] - 1)
        y = min((y0 + y1) // 2 - self.box[1], source.shape[0] - 1)
        place_x, place_y = source[y, x] / SUPERSAMPLING
        dx, dy = round(x - float(place_x)), round(y - float(place_y))
        slack = round(2 + TURN_SLACK * self.head.face_height)
        return inside(grown((x0 + dx, y0 + dy, x1 + dx, y1 + dy), slack, self.box), self.box)

    def _places(self, source: Array) -> tuple[Array, Array]:
        """x, y in image px of positions in the enlarged source, (h, w, 2)."""
        scale = np.float32(1 / SUPERSAMPLING)
        x0, y0 = np.float32(self.box[0]), np.float32(self.box[1])
        return source[..., 0] * scale + x0, source[..., 1] * scale + y0

    @staticmethod
    def _move(source: Array, shift_x: Array, shift_y: Array) -> None:
        """Move positions in the enlarged source by shifts in image px, in place."""
        source[..., 0] += SUPERSAMPLING * shift_x
        source[..., 1] += SUPERSAMPLING * shift_y


def _enlarged(layer: Array) -> Array:
    """uint8 (h, w, 4) → (2h - 1, 2w - 1, 4): original pixels kept, cubic interpolation between them."""
    height, width = layer.shape[:2]
    size = ((width - 1) * SUPERSAMPLING + 1, (height - 1) * SUPERSAMPLING + 1)
    scale = np.array([[1 / SUPERSAMPLING, 0, 0], [0, 1 / SUPERSAMPLING, 0]], np.float32)
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(layer, scale, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
