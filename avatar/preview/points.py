"""Seven points that a person places on a drawing, and the face mesh that follows from them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from avatar.errors import BadInput
from avatar.preview.face import Face

Point = tuple[float, float]


@dataclass(frozen=True)
class FacePoints:
    """Points as fractions (x, y) of the image's width and height; left and right are the image's.

    The eyes are their centres: both or neither.
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

    @classmethod
    def parse(cls, data: object) -> FacePoints:
        """From {"mouth_left": [x, y], ...}. Raises: BadInput naming the point that is wrong."""
        raise NotImplementedError


def face_from_points(points: FacePoints, width: int, height: int) -> Face:
    """The mesh of `points` on an image of `width` x `height` pixels."""
    raise NotImplementedError


def load_sidecar(portrait: Path) -> FacePoints | None:
    """The points in NAME.json beside a portrait, or None without such a file.

    Raises: BadInput where the file is not what it should be.
    """
    raise NotImplementedError
