"""Points that a user places on a portrait in which no face was found."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path

from avatar.errors import BadInput
from avatar.media.side_files import is_marked
from avatar.paths import is_file

Point = tuple[float, float]

# Names of the points in messages.
LABELS = {
    "mouth_left": "the left mouth corner",
    "mouth_right": "the right mouth corner",
    "inner_lip_top": "the lower edge of the upper lip",
    "inner_lip_bottom": "the upper edge of the lower lip",
    "outer_lip_top": "the upper edge of the upper lip",
    "outer_lip_bottom": "the lower edge of the lower lip",
    "chin": "the chin",
    "eye_left": "the left eye",
    "eye_right": "the right eye",
}
OPTIONAL = ("eye_left", "eye_right", "eye_size")
DOWN_THE_FACE = ("outer_lip_top", "inner_lip_top", "inner_lip_bottom", "outer_lip_bottom", "chin")

MIN_MOUTH = 0.01  # minimum mouth width, relative to the image's width
SAME_HEIGHT = 0.02  # lip points may be out of order by this share of the mouth's width, as hands are unsteady
ON_SCREEN = "Move it and try again."


@dataclass(frozen=True)
class FacePoints:
    """Points as fractions (x, y) of the image's width and height; left and right are the image's.

    Eyes are their centres, both or neither. eye_size is an eye's (width, height) opening, in fractions too;
    without it human proportions are assumed. The two inner lip points of a closed mouth may coincide.
    Raises: BadInput that names the wrong point.
    """

    mouth_left: Point
    mouth_right: Point
    inner_lip_top: Point
    inner_lip_bottom: Point
    outer_lip_top: Point
    outer_lip_bottom: Point
    chin: Point
    eye_left: Point | None = None
    eye_right: Point | None = None
    eye_size: Point | None = None

    def __post_init__(self) -> None:
        for name, label in LABELS.items():
            point = getattr(self, name)
            if point is not None and not all(0 <= v <= 1 for v in point):
                raise BadInput(f"{label.capitalize()} is outside the picture.", "Place it inside.")
        _check_mouth(self)
        _check_eyes(self)

    @classmethod
    def parse(cls, data: object) -> FacePoints:
        """Parse {"mouth_left": [x, y], ...} from JSON. Raises: BadInput that names the fault."""
        if not isinstance(data, Mapping):
            raise BadInput("Face points must be an object of named points.", f"Give {', '.join(LABELS)}.")
        names = [field.name for field in fields(cls)]
        for name in data:
            if name not in names:
                near = difflib.get_close_matches(str(name), names, 1)
                hint = f'Did you mean "{near[0]}"?' if near else f"Known points: {', '.join(names)}."
                raise BadInput(f'"{name}" is not a face point.', hint)
        given = {name: value for name, value in data.items() if value is not None}
        missing = [LABELS[name] for name in names if name not in OPTIONAL and name not in given]
        if missing:
            raise BadInput(f"Face points are incomplete: {', '.join(missing)} missing.", "Place every point.")
        return cls(**{name: _pair(name, value) for name, value in given.items()})

    def to_dict(self) -> dict[str, list[float]]:
        """The points as a dict that parse() reads."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: list(value) for name, value in values.items() if value is not None}


def _pair(name: str, value: object) -> Point:
    numbers = list(value) if isinstance(value, list | tuple) else []
    if len(numbers) != 2 or any(isinstance(v, bool) or not isinstance(v, int | float) for v in numbers):
        raise BadInput(f'"{name}" is not a pair of numbers.', "Give [x, y] as fractions of width and height.")
    if not all(math.isfinite(v) for v in numbers):
        raise BadInput(f'"{name}" is not a pair of finite numbers.', "Give [x, y] between 0 and 1.")
    return float(numbers[0]), float(numbers[1])


def _check_mouth(points: FacePoints) -> None:
    (x0, y0), (x1, y1) = points.mouth_left, points.mouth_right
    if math.hypot(x1 - x0, y1 - y0) < MIN_MOUTH:
        raise BadInput("The two mouth corners are at the same place.", "Place one at each end.")
    if x1 <= x0:
        raise BadInput("The mouth corners are swapped.", "Left is the left of the picture.")

    def depth(point: Point) -> float:
        """Distance below the line through the mouth corners, in mouth widths; ordered alike at any aspect."""
        return ((x1 - x0) * (point[1] - y0) - (y1 - y0) * (point[0] - x0)) / ((x1 - x0) ** 2 + (y1 - y0) ** 2)

    depths = [depth(getattr(points, name)) for name in DOWN_THE_FACE]
    for i, (upper, lower) in enumerate(pairwise(DOWN_THE_FACE)):
        if depths[i + 1] < depths[i] - SAME_HEIGHT:
            raise BadInput(f"{LABELS[lower].capitalize()} is above {LABELS[upper]}.", ON_SCREEN)
    if depths[-1] <= max(depths[-2], 0) + SAME_HEIGHT:
        raise BadInput("The chin touches the mouth.", "Place it at the lower edge of the face.")
    if points.eye_left and points.eye_right:
        for name in ("eye_left", "eye_right"):
            if depth(getattr(points, name)) >= depths[0]:
                raise BadInput(f"{LABELS[name].capitalize()} is not above the mouth.", ON_SCREEN)


def _check_eyes(points: FacePoints) -> None:
    if (points.eye_left is None) != (points.eye_right is None):
        raise BadInput("Only one eye is placed.", "Place both eyes, or neither.")
    if points.eye_left and points.eye_right and points.eye_right[0] - points.eye_left[0] < MIN_MOUTH:
        raise BadInput("The eyes are swapped or at the same place.", "Left is the left of the picture.")
    if points.eye_size is None:
        return
    if points.eye_left is None:
        raise BadInput("An eye size is given without eyes.", "Place both eyes, or leave the size out.")
    if not all(0 < v <= 0.5 for v in points.eye_size):
        raise BadInput("The eye size is out of range.", "Give [width, height] above 0, at most 0.5.")


def load_sidecar(portrait: Path) -> FacePoints | None:
    """The points in NAME.json beside a portrait, {"points": {...}}, or None if there is no such file.

    Earlier versions wrote their run reports under that name; those are ignored.

    Raises: BadInput for a file that is malformed.
    """
    try:
        path = portrait.with_suffix(".json")
    except ValueError:  # not a possible file name; intake reports what is wrong with the portrait's
        return None
    if not is_file(path):
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{path.name} cannot be read as JSON.", "Correct or remove it.") from error
    if is_marked(data):
        return None
    if not isinstance(data, Mapping) or "points" not in data:
        raise BadInput(f'{path.name} has no "points".', "Correct or remove it.")
    try:
        return FacePoints.parse(data["points"])
    except BadInput as error:
        raise BadInput(f"{path.name}: {error.message}", error.remedy) from error
