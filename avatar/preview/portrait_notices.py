"""What about a portrait keeps its speech from being seen: a covered mouth, a cut-off chin, few pixels."""

from __future__ import annotations

import cv2
import numpy as np

from avatar.events import Notice
from avatar.geometry import Size
from avatar.media.face_choice import everybody
from avatar.media.portrait import read_portrait, video_size
from avatar.preview.face_detection import SURE_JITTER, Face, Faces
from avatar.preview.recent import known_faces
from avatar.preview.topology import (
    CHIN,
    FOREHEAD,
    LOWER_LIP_INNER,
    LOWER_LIP_OUTER,
    UPPER_LIP_INNER,
    UPPER_LIP_OUTER,
)
from avatar.request import Request

SMALL_PORTRAIT_PX = 256  # shorter side; below it there is little of a face to enlarge
SMALL_FACE_PX = 40  # height in the video; the mouth is then a dozen pixels wide and opens by three or four
NO_USE_OF_POINTS = frozenset(("mouth_cut_off", "chin_cut_off", "mouth_covered"))  # nothing to place them on
CUT_OFF = 0.03  # a point so far outside the picture, over face height, is surely outside

# Lips are redder or darker than the skin around them: 2·Δa − ΔL in 8-bit CIELAB. Measured on photographs and
# drawings: 17 and more where they are seen; −30 to 12 under hands, masks and plain colours.
LIPS_STAND_OUT = 14.0
DOUBTFUL_LIPS = 0.0  # where the face was found with doubt, its lips may not be where they are looked for
# Landmarks of an uncovered mouth in a clear picture are steadier, and refined less, than this.
UNSTEADY_JITTER = 0.0065
UNSURE_LIPS = 0.0085
COLOURLESS = 4.0  # a face of less mean chroma is black and white: its lips look like any shadow


def portrait_notices(request: Request) -> list[Notice]:
    """The concerns about a request's portrait, for an engine that does not look for the face by itself."""
    if request.preset.engine == "preview" or request.preset.requires.weights == "tiny":
        return []
    image = read_portrait(request.portrait)
    faces, name = known_faces(image), request.portrait_name
    size = video_size(request.portrait, request.preset)
    chosen = request.face is not None or request.speakers
    notices = [] if chosen else everybody(len(faces.found), name)
    for index in _speaking(request, faces, *image.shape[1::-1]):
        found = None if index is None else faces.found[index]
        face = found.face if found is not None and found.verdict == "face" else None
        known = {one.code for one in notices}
        notices += [one for one in concerns(image, face, size, name) if one.code not in known]
    return notices


def _speaking(request: Request, faces: Faces, width: int, height: int) -> list[int | None]:
    """The indexes of the faces that speak; None for one that is not found."""
    if not request.speakers:
        return [faces.main if faces.found else None]
    boxes = [one.face for one in request.speakers]
    return [
        faces.at((left * width, top * height, right * width, bottom * height))
        for left, top, right, bottom in boxes
    ]


def concerns(image: np.ndarray, face: Face | None, video: Size, name: str) -> list[Notice]:
    """Warnings about a portrait, each with a remedy; none for a portrait that is as it should be.

    image: uint8 (H, W, 3) RGB; face: in its pixels; video: the size that comes out; name: the file's.
    A covered mouth is recognised by its colours, and only where the model has found the face by itself: in a
    black-and-white picture, or one whose colours are odd, it may be missed.
    """
    height, width = image.shape[:2]
    found = []
    if min(width, height) < SMALL_PORTRAIT_PX:
        found.append(
            _warning(
                "small_portrait",
                f"{name} has only {width}×{height} pixels: the face will look blurred."
                " Take a larger picture; from 512 pixels on the shorter side it looks good.",
                name=name,
                width=width,
                height=height,
            )
        )
    if face is None:
        return found
    tall = _face_height(face) * video.width / width
    if tall < SMALL_FACE_PX:
        found.append(
            _warning(
                "small_face",
                f"The face will be {tall:.0f} pixels high in the video: you will hardly see it speak."
                f" Crop {name} to head and shoulders, which framing does.",
                name=name,
                pixels=round(tall),
            )
        )
    outside = cut_off(image, face, name)
    if outside:
        return [*found, *outside]
    if mouth_covered(image, face):
        text = (
            f"The mouth in {name} seems to be covered, by a hand perhaps: lips drawn over it look wrong."
            " Take a picture in which the mouth is free."
        )
        found.append(_warning("mouth_covered", text, name=name))
    return found


def cut_off(image: np.ndarray, face: Face, name: str) -> list[Notice]:
    """That mouth or chin lie outside the picture; nothing where they do not. See concerns."""
    if mouth_cut_off(image, face):
        text = (
            f"The mouth is cut off by the edge of {name}: its speech cannot be seen."
            " Take a picture that shows the whole face."
        )
        return [_warning("mouth_cut_off", text, name=name)]
    if chin_cut_off(image, face):
        text = (
            f"The chin is cut off by the edge of {name}: the jaw will not move as it should."
            " Take a picture that shows the whole face, with some room below."
        )
        return [_warning("chin_cut_off", text, name=name)]
    return []


def chin_cut_off(image: np.ndarray, face: Face) -> bool:
    """Whether the chin lies outside the picture; the model knows where it would be."""
    return _outside(image, face, [CHIN])


def mouth_cut_off(image: np.ndarray, face: Face) -> bool:
    """Whether a part of the lips lies outside the picture."""
    return _outside(image, face, [*UPPER_LIP_OUTER, *LOWER_LIP_OUTER])


def mouth_covered(image: np.ndarray, face: Face) -> bool:
    """Whether nothing stands out where the lips should be, and the model is not sure of them."""
    if face.origin != "model" or (face.jitter < UNSTEADY_JITTER and face.lip_doubt < UNSURE_LIPS):
        return False
    contrast = _lip_contrast(image, face)
    needed = LIPS_STAND_OUT if face.jitter <= SURE_JITTER else DOUBTFUL_LIPS
    return contrast is not None and contrast < needed


def _warning(code: str, text: str, **values: object) -> Notice:
    return Notice(code, text, "warning", values=values)


def _face_height(face: Face) -> float:
    return float(np.linalg.norm(face.landmarks[FOREHEAD, :2] - face.landmarks[CHIN, :2]))


def _outside(image: np.ndarray, face: Face, rows: list[int]) -> bool:
    height, width = image.shape[:2]
    points, margin = face.landmarks[rows, :2], CUT_OFF * _face_height(face)
    low, high = points.min(axis=0), points.max(axis=0)
    return bool((low < -margin).any() or (high > np.array([width, height]) + margin).any())


def _lip_contrast(image: np.ndarray, face: Face) -> float | None:
    """How much redder and darker the lips are than the skin around them; None where that cannot be known."""
    outer, inner = (
        face.landmarks[[*upper, *reversed(lower)], :2]
        for upper, lower in ((UPPER_LIP_OUTER, LOWER_LIP_OUTER), (UPPER_LIP_INNER, LOWER_LIP_INNER))
    )
    centre = outer.mean(axis=0)
    corner = np.maximum(face.landmarks[:, :2].min(axis=0).astype(int), 0)
    end = face.landmarks[:, :2].max(axis=0).astype(int)
    patch = np.ascontiguousarray(image[corner[1] : end[1], corner[0] : end[0]])
    if not patch.size:
        return None
    lab = cv2.cvtColor(patch, cv2.COLOR_RGB2LAB).astype(np.float64)
    if np.abs(lab[..., 1:] - 128).mean() < COLOURLESS:
        return None

    def inside(outline: np.ndarray, x: float = 1.0, y: float = 1.0) -> np.ndarray:
        mask = np.zeros(patch.shape[:2], np.uint8)
        scaled = centre + (outline - centre) * (x, y) - corner
        return cv2.fillPoly(mask, [scaled.round().astype(np.int32)], 1) > 0

    lips = inside(outer) & ~inside(inner)
    around = inside(outer, 1.35, 1.9) & ~inside(outer, 1.1, 1.25)
    if not lips.any() or not around.any():
        return None
    lightness, redness, _ = lab[lips].mean(axis=0) - lab[around].mean(axis=0)
    return float(2 * redness - lightness)
