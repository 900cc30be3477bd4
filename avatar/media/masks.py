"""Where in a portrait each speaker's voice acts, painted white: checked, and framed like the portrait."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from avatar.errors import BadInput
from avatar.media.face_choice import FaceBox
from avatar.media.framing import CropRectangle
from avatar.request import Box

LONGEST_PX = 512  # side of a mask as it is kept: a few pixels for each token of the model
WHITE = 128  # from this grey on, a pixel counts as painted
LEAST_SHARE = 1 / 2000  # of the picture: less is a speck
ASPECT_SLACK = 0.02
COVERED = 0.95  # of a mask: so much of it within another one is all of it
ON_FACE = 0.3  # share of a face that a mask has to cover to choose it
BESIDE_FACE = 0.05  # share of its own face below which a mask is probably another's
HOW_TO_PAINT = "Paint it on the portrait itself: white where this speaker is, black elsewhere."


def is_empty(mask: np.ndarray) -> bool:
    """Whether next to nothing in a mask is white."""
    return bool((mask >= WHITE).mean() < LEAST_SHARE)


def fitted(pixels: np.ndarray, width: int, height: int, name: str) -> np.ndarray:
    """A mask as it is kept, uint8 (h, w), for a portrait of width x height that is yet to be framed.

    pixels: uint8 (H, W), white where its speaker is. name: the file's. Raises: BadInput for a mask of another
    shape, or with next to nothing white in it.
    """
    own = pixels.shape[1], pixels.shape[0]
    if abs(own[0] * height / (own[1] * width) - 1) > ASPECT_SLACK:
        raise BadInput(
            f"The mask {name} has another shape than the portrait: {own[0]}×{own[1]} pixels, and the portrait"
            f" {width}×{height}.",
            HOW_TO_PAINT,
        )
    size = _kept_size(width, height)
    kept = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))
    if is_empty(kept):
        raise BadInput(f"The mask {name} is empty: hardly anything in it is white.", HOW_TO_PAINT)
    return kept


def of_box(box: Box, width: int, height: int) -> np.ndarray:
    """The mask that is white in a box, given in fractions; see fitted."""
    columns, rows = _kept_size(width, height)
    left, top, right, bottom = box
    mask = np.zeros((rows, columns), np.uint8)
    across = slice(round(left * columns), max(round(left * columns) + 1, round(right * columns)))
    down = slice(round(top * rows), max(round(top * rows) + 1, round(bottom * rows)))
    mask[down, across] = 255
    return mask


def share_within(mask: np.ndarray, box: FaceBox) -> float:
    """Which share of a box, of which some may lie outside the picture, a mask covers, 0 to 1."""
    rows, columns = mask.shape
    left, right = (min(max(round(side * columns), 0), columns) for side in (box.left, box.right))
    top, bottom = (min(max(round(side * rows), 0), rows) for side in (box.top, box.bottom))
    inside = mask[top:bottom, left:right]
    return float((inside >= WHITE).mean()) if inside.size else 0.0


def face_within(mask: np.ndarray, faces: Sequence[FaceBox], name: str) -> int:
    """The index of the face that lies in a mask. name: the mask's. Raises: BadInput for none, or several."""
    found = [index for index, box in enumerate(faces) if share_within(mask, box) >= ON_FACE]
    if len(found) == 1:
        return found[0]
    if not found:
        raise BadInput(f"No face lies in the mask {name}.", "Paint over a face; or say which, as face.")
    numbers = " and ".join(str(index + 1) for index in found)
    raise BadInput(f"Faces {numbers} lie in the mask {name}.", "Say which one speaks, as face.")


def check_apart(named: Sequence[tuple[str, np.ndarray]]) -> None:
    """Refuse a mask that lies wholly within another. named: with their names. Raises: BadInput."""
    for number, (name, mask) in enumerate(named):
        white = mask >= WHITE
        for other_number, (other_name, other) in enumerate(named):
            if number != other_number and (white & (other >= WHITE)).sum() >= COVERED * white.sum():
                raise BadInput(
                    f"The mask {name} lies wholly within the mask {other_name}.",
                    "Give each voice a part of the picture of its own.",
                )


def png_within(mask: np.ndarray, cut: CropRectangle, width: int) -> bytes:
    """A mask of a portrait so many pixels wide as a PNG of the cut; black where that reaches beyond."""
    scale = mask.shape[1] / width
    size = max(1, round(cut.width * scale)), max(1, round(cut.height * scale))
    canvas = Image.new("L", size)
    canvas.paste(Image.fromarray(mask), (-round(cut.left * scale), -round(cut.top * scale)))
    out = io.BytesIO()
    canvas.save(out, "PNG", optimize=True)
    return out.getvalue()


def _kept_size(width: int, height: int) -> tuple[int, int]:
    scale = min(1.0, LONGEST_PX / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))
