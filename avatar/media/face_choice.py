"""Which of a portrait's faces is meant: by number from the left, by a point in it, or the largest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from avatar.errors import BadInput
from avatar.events import Notice

Point = tuple[float, float]
HOW_TO_CHOOSE = "Give its number, counted from the left, or a point in it as x,y: fractions from 0 to 1."


@dataclass(frozen=True)
class FaceBox:
    """A face from forehead to chin, as fractions of the picture's width and height; may end outside of it."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def middle(self) -> Point:
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2

    def holds(self, point: Point) -> bool:
        """Whether a point of the picture, in fractions, lies in it."""
        return self.left <= point[0] <= self.right and self.top <= point[1] <= self.bottom

    def as_tuple(self) -> tuple[float, float, float, float]:
        return self.left, self.top, self.right, self.bottom


@dataclass(frozen=True)
class FoundFaces:
    """The faces of a portrait, from left to right. main: the index of the one that speaks by default."""

    boxes: tuple[FaceBox, ...] = ()
    main: int = 0


class FaceFinder(Protocol):
    """What finds faces: a part of the preview engine, which intake is handed."""

    def faces(self, pixels: np.ndarray) -> FoundFaces:
        """Of a picture, uint8 (H, W, 3) RGB."""
        ...

    def placed(self, points: Mapping[str, Point], width: int, height: int) -> FaceBox:
        """Of the face whose points a person has placed on a picture. Raises: BadInput."""
        ...

    def cut_off(
        self, pixels: np.ndarray, points: Mapping[str, Point] | None, box: FaceBox | None, name: str
    ) -> list[Notice]:
        """What lies outside a picture of the face with these points, else of that box, else the main one."""
        ...


def chosen(found: FoundFaces, face: str, name: str) -> int:
    """The index of the face that a setting asks for: "" for the main one, "2", or "0.3,0.4".

    found: at least one, unless a face is asked for. name: the portrait's. Raises: BadInput when there is no
    such face.
    """
    count = len(found.boxes)
    if not count:
        raise BadInput(
            f"No face was found in {name}.",
            "Take a portrait that shows the whole face, or leave out what is asked of its face.",
        )
    if not face:
        return found.main
    if "," not in face:
        number = int(face)
        if not 1 <= number <= count:
            there = "1 face" if count == 1 else f"{count} faces"
            raise BadInput(f"There is no face {number} in {name}: {there} can be seen.", HOW_TO_CHOOSE)
        return number - 1
    point = point_of(face)
    holding = [index for index, box in enumerate(found.boxes) if box.holds(point)]
    if not holding:
        places = "; ".join(
            f"{n}: {box.middle[0]:.2f},{box.middle[1]:.2f}" for n, box in enumerate(found.boxes, 1)
        )
        raise BadInput(
            f"There is no face at {face} in {name}.", f"Faces, counted from the left, are at {places}."
        )
    return min(holding, key=lambda index: _apart(found.boxes[index].middle, point))


def point_of(face: str) -> Point:
    """ "0.3,0.4" as two numbers."""
    x, y = face.split(",")
    return float(x), float(y)


def face_words(value: Any) -> Any:
    """A face as JSON or TOML has it, 2 or [0.3, 0.4], as the setting has it: "2", "0.3,0.4"."""
    if type(value) is int:
        return str(value)
    if isinstance(value, list | tuple) and [type(part) in (int, float) for part in value] == [True, True]:
        return f"{value[0]:.6f},{value[1]:.6f}"
    return value


def several_faces(count: int, index: int, by_user: bool, name: str) -> list[Notice]:
    """What the user reads where a portrait has several faces; nothing where it has one."""
    if count < 2:
        return []
    values = {"count": count, "number": index + 1, "name": name}
    if by_user:
        text = f"Of {count} faces in {name}, number {index + 1} from the left speaks, as chosen."
        return [Notice("face_chosen", text, values=values)]
    text = (
        f"There are {count} faces in {name}: number {index + 1} from the left, the largest, speaks."
        " Another one can be chosen by its number (face)."
    )
    return [Notice("several_faces", text, "warning", values=values)]


def idle_faces(count: int, most: int, name: str) -> list[Notice]:
    """What the user of a live session reads where there are other faces, of which so many move at most."""
    if not count:
        return []
    values = {"count": min(count, most), "of": count, "name": name}
    if count > most:
        text = f"{most} of the other {count} faces in {name} blink and breathe; the smallest stay still."
        return [Notice("idle_faces_most", text, values=values)]
    who, do = ("face", "blinks and breathes") if count == 1 else (f"{count} faces", "blink and breathe")
    return [Notice("idle_faces", f"The other {who} in {name} {do}.", values=values)]


def everybody(count: int, name: str) -> list[Notice]:
    """What the user reads where a model moves whoever is in the picture; nothing where that is one person."""
    if count < 2:
        return []
    text = (
        f"There are {count} faces in {name}, and the model may move any of them."
        " To have one alone, crop to it: choose a framing, and which face."
    )
    return [Notice("everybody", text, "warning", values={"count": count, "name": name})]


def _apart(a: Point, b: Point) -> float:
    return (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2
