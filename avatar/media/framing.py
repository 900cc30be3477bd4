"""What of a portrait is shown: cut about a face, brought to a shape, extended where the picture ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageFilter

from avatar.errors import BadInput
from avatar.events import Notice
from avatar.media.background.choice import check_background
from avatar.media.face_choice import FaceBox, FaceFinder, Point, chosen, several_faces
from avatar.media.portrait import WORKING_SIDE_PX
from avatar.settings import PICTURE, Picture
from avatar.validation import made

# What a framing shows at least, in heights of the face: above it, below it, and to either side of its middle.
AROUND = {"head": (0.6, 0.5, 0.75), "shoulders": (0.75, 1.6, 1.15), "half": (0.9, 4.0, 1.6)}
SHAPES = {"9:16": 9 / 16, "1:1": 1.0, "16:9": 16 / 9}  # width over height
HEADROOM = 0.35  # of what a crop's shape adds, so much goes above
SMALLEST_CROP_PX = 256  # shorter side; a smaller crop is enlarged
BLUR = 0.03  # radius, over the longer side
BLURRED_PX = 512  # longer side of the copy that is blurred


@dataclass(frozen=True)
class CropRectangle:
    """A rectangle in a picture's pixels, sides at least 1; may reach beyond the picture."""

    left: int
    top: int
    width: int
    height: int

    def follow(self, point: Point, width: int, height: int) -> Point:
        """A point of the picture of width x height as a point of the cut, both in fractions."""
        x, y = point
        return (x * width - self.left) / self.width, (y * height - self.top) / self.height


@dataclass(frozen=True)
class FramedPortrait:
    """A portrait as engines get it.

    pixels: uint8 (H, W, 3) RGB. points: placed by hand, followed into it. face: the box of the face that was
    chosen, likewise; None where the engine chooses.
    """

    pixels: np.ndarray
    points: dict[str, Point] | None = None
    face: tuple[float, float, float, float] | None = None
    notices: tuple[Notice, ...] = field(default_factory=tuple)


def parse_picture(where: str = "", *, files: bool = False, **given: object) -> Picture:
    """The picture settings that a user gave; None leaves a setting at its default.

    where: put before a setting's name. files: whether the background may be a picture file, by its path; it
    may on the command line and in a batch, where a setting without an effect is refused as well.
    Raises: BadInput for a wrong type or value.
    """
    picture = made(Picture, {name: one.setting.allowed for name, one in PICTURE.items()}, where, given)
    check_background(picture.background, where, files=files)
    if files and picture.extend != Picture().extend and not picture.may_extend:
        raise BadInput(
            f"{where}extend is {picture.extend}, and a whole picture in its own shape is not extended.",
            "Give aspect or framing as well, or leave extend out.",
        )
    return picture


def framed(
    pixels: np.ndarray,
    picture_settings: Picture,
    name: str,
    *,
    points: Mapping[str, Point] | None = None,
    finder: FaceFinder | None = None,
) -> FramedPortrait:
    """The portrait as its settings ask: its face chosen, cut and extended, and hand-placed points with it.

    pixels: uint8 (H, W, 3) RGB. name: the portrait's, for messages. points: by name, fractions.
    finder: needed for a face or a crop; also tells what is cut off where a picture is extended.
    Raises: BadInput when there is no such face.
    """
    height, width = pixels.shape[:2]
    whole = picture_settings.framing == "whole"
    box: FaceBox | None = None
    notices: list[Notice] = []
    if points and picture_settings.face:
        raise BadInput("Face points say which face speaks; so does face.", "Leave one of them out.")
    if picture_settings.face or not whole:
        assert finder is not None, "a face is to be found"
        if points:
            box = finder.placed(points, width, height)
        else:
            found = finder.faces(pixels)
            index = chosen(found, picture_settings.face, name)
            box = found.boxes[index]
            notices = several_faces(len(found.boxes), index, bool(picture_settings.face), name)
    cut = cut_of(width, height, picture_settings, box)
    if cut != CropRectangle(0, 0, width, height):
        if finder is not None and _reaches_beyond(cut, width, height):  # later none can tell: there is blur
            notices += finder.cut_off(pixels, points, box, name)
        points = _followed(points, cut, width, height)
        picture = _cut_out(pixels, cut, picture_settings.extend)
        size = size_of(cut, picture_settings)
        if size[0] > picture.width:
            notices.append(_enlarged(picture, name))
        if size != picture.size:
            picture = picture.resize(size, Image.Resampling.LANCZOS)
        pixels = np.array(picture)
    return FramedPortrait(
        pixels,
        None if points is None else dict(points),
        None if box is None or points else box_within(box, cut, width, height),
        tuple(notices),
    )


def cut_of(width: int, height: int, picture_settings: Picture, box: FaceBox | None) -> CropRectangle:
    """The rectangle that the settings mean in a picture of width x height. box: of the face; for crops."""
    shape = SHAPES.get(picture_settings.aspect, width / height)
    if picture_settings.framing == "whole":
        left, top, right, bottom = 0.0, 0.0, float(width), float(height)
        headroom = 0.5
    else:
        assert box is not None, "a crop is about a face"
        left, top, right, bottom = _around(box, picture_settings.framing, width, height)
        headroom = HEADROOM
    wide, tall = max(right - left, (bottom - top) * shape), max(bottom - top, (right - left) / shape)
    left = _placed(left - (wide - (right - left)) / 2, wide, width)
    top = _placed(top - headroom * (tall - (bottom - top)), tall, height)
    return CropRectangle(round(left), round(top), max(1, round(wide)), max(1, round(tall)))


def _reaches_beyond(cut: CropRectangle, width: int, height: int) -> bool:
    return min(cut.left, cut.top) < 0 or cut.left + cut.width > width or cut.top + cut.height > height


def size_of(cut: CropRectangle, picture_settings: Picture) -> tuple[int, int]:
    """Width and height at which engines get a cut: small crops enlarged, nothing beyond the working size."""
    scale = WORKING_SIDE_PX / max(cut.width, cut.height)
    if picture_settings.framing != "whole":
        scale = min(scale, max(1.0, SMALLEST_CROP_PX / min(cut.width, cut.height)))
    scale = min(scale, 1.0) if picture_settings.framing == "whole" else scale
    return max(1, round(cut.width * scale)), max(1, round(cut.height * scale))


def _around(box: FaceBox, framing: str, width: int, height: int) -> tuple[float, float, float, float]:
    """What a framing shows of the picture, in pixels: left, top, right, bottom."""
    above, below, aside = (share * (box.bottom - box.top) * height for share in AROUND[framing])
    x = min(max(box.middle[0], 0.0), 1.0) * width
    top, bottom = box.top * height - above, box.bottom * height + below
    return max(0.0, x - aside), max(0.0, top), min(float(width), x + aside), min(float(height), bottom)


def _placed(start: float, length: float, available: int) -> float:
    """Where a stretch begins once it is moved into the picture; one that is longer keeps its place."""
    if length >= available:
        return min(0.0, max(available - length, start))
    return min(max(0.0, start), available - length)


def _cut_out(pixels: np.ndarray, cut: CropRectangle, extend: str) -> Image.Image:
    """The cut of a picture, what lies beyond the picture filled in."""
    top, left = max(0, cut.top), max(0, cut.left)
    inside = pixels[top : cut.top + cut.height, left : cut.left + cut.width]
    before = top - cut.top, left - cut.left
    after = cut.height - before[0] - inside.shape[0], cut.width - before[1] - inside.shape[1]
    picture = Image.fromarray(np.ascontiguousarray(inside))
    return _extended(picture, before, after, extend) if any((*before, *after)) else picture


def _enlarged(crop: Image.Image, name: str) -> Notice:
    """That a crop is so small that it is enlarged, and will look blurred."""
    text = (
        f"Cropped, {name} has only {crop.width}×{crop.height} pixels: the face will look blurred."
        " Take a larger picture."
    )
    values = {"name": name, "width": crop.width, "height": crop.height}
    return Notice("small_crop", text, "warning", values=values)


def _extended(
    picture: Image.Image, before: tuple[int, int], after: tuple[int, int], extend: str
) -> Image.Image:
    """The picture on a larger canvas: its edges drawn out and blurred, or a colour.

    before, after: rows and columns to add.
    """
    (top, left), (bottom, right) = before, after
    size = picture.width + left + right, picture.height + top + bottom
    if extend != "blur":
        canvas = Image.new("RGB", size, extend)
    else:
        scale = min(1.0, BLURRED_PX / max(size))
        rows, columns = ([round(scale * part) for part in parts] for parts in ((top, bottom), (left, right)))
        small = picture.resize(
            (max(1, round(picture.width * scale)), max(1, round(picture.height * scale))),
            Image.Resampling.BOX,
        )
        drawn_out = np.pad(np.asarray(small), (tuple(rows), tuple(columns), (0, 0)), mode="edge")
        blurred = Image.fromarray(drawn_out).filter(ImageFilter.GaussianBlur(BLUR * max(drawn_out.shape)))
        canvas = blurred.resize(size, Image.Resampling.BICUBIC)
    canvas.paste(picture, (left, top))
    return canvas


def _followed(
    points: Mapping[str, Point] | None, cut: CropRectangle, width: int, height: int
) -> dict[str, Point] | None:
    """Points of the picture in the cut. An eye's size is a length: it has no place that could move."""
    if points is None:
        return None
    out = {name: cut.follow(point, width, height) for name, point in points.items()}
    if "eye_size" in points:
        w, h = points["eye_size"]
        out["eye_size"] = w * width / cut.width, h * height / cut.height
    for name, (x, y) in out.items():
        if not (0 <= x <= 1 and 0 <= y <= 1):
            raise BadInput(
                f"Face point {name!r} lies outside the crop.", "Choose a wider framing, or move it."
            )
    return out


def box_within(
    box: FaceBox, cut: CropRectangle, width: int, height: int
) -> tuple[float, float, float, float]:
    """A box of the picture of width x height as a box of the cut, both in fractions."""
    left, top = cut.follow((box.left, box.top), width, height)
    right, bottom = cut.follow((box.right, box.bottom), width, height)
    return left, top, right, bottom
