"""Which part of the portrait is shown, as the page offers it: faces as boxes, crops, shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, get_args

from avatar.errors import BadInput
from avatar.media.face_choice import FaceBox
from avatar.media.framing import cut_of, parse_picture, size_of
from avatar.request import PICTURE_FILE
from avatar.settings import Aspect, Framing, Picture
from avatar.ui.language import Language, text
from avatar.ui.payloads import background, face_points, mapping

Points = Mapping[str, tuple[float, float]]
Rectangles = dict[str, dict[str, list[float]]]

LARGEST_PX = 20_000  # side of a picture
FARTHEST = 10  # how far outside the picture a box may lie, in sides of the picture
KEPT = (
    "framing",
    "aspect",
    "extend",
    "background",
)  # choices that stay when the page looks at the same portrait again
UPLOADED = "background_file"  # key of the uploaded picture; its path was checked as every upload's is
BACKGROUNDS = ("keep", "blur", "colour", "picture", "green", "transparent")
WORDS = (
    *(
        "frame_title",
        "frame_faces",
        "frame_face",
        "frame_framing",
        "frame_aspect",
        "frame_extend",
        "frame_preview",
    ),
    *("frame_edit", "frame_edited", "frame_small", "frame_crop", "frame_blur", "frame_colour"),
    *("frame_background", "frame_background_colour", "frame_transparent", "frame_picture_failed"),
    *(f"background_{one}" for one in BACKGROUNDS),
    *(f"framing_{one}" for one in get_args(Framing)),
    *(f"aspect_{one}" for one in get_args(Aspect)),
)


@dataclass(frozen=True)
class SeenFace:
    """A face of the portrait. verdict: the detector's; points: the seven, as fractions of the picture."""

    verdict: str
    box: FaceBox
    points: Points

    def as_value(self, width: int, height: int) -> dict[str, Any]:
        """The face as JSON, for the page's script."""
        cuts = rectangles(width, height, self.box)
        return {"verdict": self.verdict, "box": asdict(self.box), "points": self.points, "cuts": cuts}


def rectangles(width: int, height: int, box: FaceBox) -> Rectangles:
    """Crops by framing and aspect: left, top, width and height in fractions of the picture."""
    out: Rectangles = {}
    for framing in get_args(Framing):
        out[framing] = {}
        for aspect in get_args(Aspect):
            cut = cut_of(width, height, Picture(framing=framing, aspect=aspect), box)
            out[framing][aspect] = [
                cut.left / width, cut.top / height, cut.width / width, cut.height / height
            ]  # fmt: skip
    return out


def panel_words(language: Language) -> dict[str, str]:
    """The panel's texts."""
    return {key: text(key, language) for key in WORDS}


def answer(value: Mapping[str, Any] | None) -> Points | None:
    """The points that a person has placed or confirmed. None: the engine finds the face itself."""
    if not value or value.get("head_only"):
        return None
    if value.get("verdict") == "face" and value.get("edited") is not True:
        return None
    return face_points(value.get("points"))


def picture_settings(value: Mapping[str, Any] | None) -> Picture:
    """Who speaks and what is shown, from the panel's value. Raises: BadInput for a value no page sends."""
    value = mapping(value)
    given = {name: value[name] for name in KEPT if value.get(name)}
    if given.get("background") == PICTURE_FILE:
        given |= background(PICTURE_FILE, mapping(value.get(UPLOADED)).get("path"))
    faces, index = value.get("faces"), value.get("face")
    if answer(value) or not isinstance(faces, list) or len(faces) < 2 or type(index) is not int:
        return parse_picture(**given)
    box = box_of(faces[index] if 0 <= index < len(faces) else None)
    x, y = (min(1.0, max(0.0, part)) for part in box.middle)
    return parse_picture(face=f"{x:.6f},{y:.6f}", **given)


def box_of(face: Any) -> FaceBox:
    """A face's box, as the page sends it back. Raises: BadInput."""
    sides = mapping(mapping(face).get("box"))
    parts = [sides.get(name) for name in ("left", "top", "right", "bottom")]
    if not all(isinstance(part, int | float) and abs(part) <= FARTHEST for part in parts):
        raise BadInput("The chosen face was not understood.", "Choose the portrait again.")
    return FaceBox(*(float(part) for part in parts))  # type: ignore[arg-type]


def shape_of(value: Mapping[str, Any], picture: Picture) -> tuple[int, int] | None:
    """Width and height of what is shown; None where no portrait has been looked at. Raises: BadInput."""
    size, box = _size(value), speaker(value)
    if size is None or box is None:
        return None
    return size_of(cut_of(*size, picture, box), picture)


def speaker(value: Mapping[str, Any]) -> FaceBox | None:
    """The box of the face that speaks, by its points where a person has placed them. Raises: BadInput."""
    from avatar.preview.face_finder import Finder  # imports OpenCV and the face models; only for a portrait

    points, size = answer(value), _size(value)
    if size is not None and points:
        return Finder().placed(points, *size)
    faces, index = value.get("faces"), value.get("face")
    known = isinstance(faces, list) and type(index) is int and 0 <= index < len(faces)
    return box_of(faces[index]) if known else None  # type: ignore[index]


def placed(value: Mapping[str, Any]) -> dict[str, Any]:
    """The crops around the speaking face, for the page's script; points may have moved the face."""
    size, box = _size(value), speaker(value)
    if size is None or box is None:
        return {}
    return {"for": value.get("for"), "face": value.get("face"), "cuts": rectangles(*size, box)}


def _size(value: Mapping[str, Any]) -> tuple[int, int] | None:
    """The portrait's width and height, as the page sends them back."""
    size = value.get("size")
    if not isinstance(size, list) or len(size) != 2:
        return None
    if not all(type(one) is int and 0 < one <= LARGEST_PX for one in size):
        return None
    return size[0], size[1]
