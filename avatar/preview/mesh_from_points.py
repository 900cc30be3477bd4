"""Build a face mesh from the few points that a user placed."""

from __future__ import annotations

from functools import cache

import numpy as np

from avatar.preview import topology as at
from avatar.preview.face_detection import Face
from avatar.preview.models import FACE_TEMPLATE
from avatar.preview.points import FacePoints

TEMPLATE_MOUTH = 0.84  # a relaxed mouth's width relative to the template's, which smiles
WIDEST_MOUTH = 0.75  # how far a wide mouth under close eyes widens the lower face
INNER_CORNERS = 0.94  # distance of the inner lips' corners from the middle, in half mouth widths
# Exponents p of the lips' edges: distance 1 - |s|^p from the mouth's middle line, s in -1..1 between corners.
EDGE_POWERS = {
    "outer_lip_top": 2.0,
    "inner_lip_top": 2.5,
    "inner_lip_bottom": 3.0,
    "outer_lip_bottom": 3.0,
}


def face_from_points(points: FacePoints, width: int, height: int) -> Face:
    """The mesh through `points` on an image of `width` x `height` pixels.

    The template is fitted to mouth and chin below and to the eyes above, blended in between; lips and lids
    are curves through the points.
    """
    px = {name: np.array(value) * (width, height) for name, value in points.to_dict().items()}
    template = _template()
    mesh = template[:, :2].astype(np.float64)
    left, right = px["mouth_left"], px["mouth_right"]
    centre, half = (left + right) / 2, (right - left) / 2
    across = half / np.linalg.norm(half)
    down = np.array([-across[1], across[0]])

    origin = mesh[[at.MOUTH_LEFT, at.MOUTH_RIGHT]].mean(axis=0)
    unit_x = float(np.linalg.norm(half)) / (mesh[at.MOUTH_RIGHT, 0] * TEMPLATE_MOUTH)
    if "eye_left" in px:
        by_eyes = float(np.linalg.norm(px["eye_right"] - px["eye_left"])) / _eye_distance(mesh)
        unit_x = max(by_eyes, unit_x * WIDEST_MOUTH)
    unit_y = max((px["chin"] - centre) @ down, np.linalg.norm(half) * 0.5) / (mesh[at.CHIN, 1] - origin[1])
    laid = centre + (mesh - origin) @ np.stack([across * unit_x, down * unit_y])
    if "eye_left" in px:
        laid = _with_upper_face(laid, mesh, origin, centre, px)
    _lay_lips(laid, px)
    laid[at.CHIN] = px["chin"]
    landmarks = np.column_stack([laid, template[:, 2] * unit_x]).astype(np.float32)
    return Face(landmarks, None, "points", 0.0, has_eyes="eye_left" in px)


@cache
def _template() -> np.ndarray:
    return np.load(FACE_TEMPLATE)


def _eye_distance(mesh: np.ndarray) -> float:
    """Distance between the template's eye centres, in units of face height."""
    return float(mesh[list(at.RIGHT_EYE_CORNERS), 0].mean() - mesh[list(at.LEFT_EYE_CORNERS), 0].mean())


def _with_upper_face(
    laid: np.ndarray, mesh: np.ndarray, origin: np.ndarray, centre: np.ndarray, px: dict[str, np.ndarray]
) -> np.ndarray:
    """The mesh, with the part above the mouth moved so that the eyes lie where they were placed."""
    eyes_y = mesh[list(at.LEFT_EYE_CORNERS), 1].mean()
    between = (px["eye_left"] + px["eye_right"]) / 2
    across = (px["eye_right"] - px["eye_left"]) / _eye_distance(mesh)
    down = (centre - between) / (origin[1] - eyes_y)
    upper = between + (mesh - [0, eyes_y]) @ np.stack([across, down])
    t = np.clip((origin[1] - mesh[:, 1:]) / (origin[1] - eyes_y), 0, 1)
    laid = laid + (upper - laid) * (t * t * (3 - 2 * t))
    if "eye_size" in px:
        for name, upper_lid, lower_lid in (
            ("eye_left", at.LEFT_EYE_UPPER, at.LEFT_EYE_LOWER),
            ("eye_right", at.RIGHT_EYE_UPPER, at.RIGHT_EYE_LOWER),
        ):
            _lay_lids(laid, px[name], across, px["eye_size"], (upper_lid, lower_lid))
    return laid


def _lay_lids(
    laid: np.ndarray,
    centre: np.ndarray,
    across: np.ndarray,
    size: np.ndarray,
    lids: tuple[tuple[int, ...], ...],
) -> None:
    """Set an eye's lids to the two halves of an ellipse, in place."""
    across = across / np.linalg.norm(across)
    x, y = across * size[0] / 2, np.array([-across[1], across[0]]) * size[1] / 2
    for lid, sign in zip(lids, (-1, 1), strict=True):
        angle = np.linspace(np.pi, 0, len(lid))[:, None]
        laid[list(lid)] = centre + np.cos(angle) * x + sign * np.sin(angle) * y


def _lay_lips(laid: np.ndarray, px: dict[str, np.ndarray]) -> None:
    """Set the rings of the lips to curves through the placed points, in place."""
    left, right = px["mouth_left"], px["mouth_right"]
    centre, half = (left + right) / 2, (right - left) / 2
    across = half / np.linalg.norm(half)
    down = np.array([-across[1], across[0]])
    shifts = {name: (px[name] - centre) @ across for name in EDGE_POWERS}
    # edges may touch, never cross
    depths = np.maximum.accumulate([(px[name] - centre) @ down for name in EDGE_POWERS])
    middle = (depths[1] + depths[2]) / 2
    s = np.linspace(-1, 1, len(at.UPPER_LIP_INNER))

    def edge(name: str, depth: float) -> np.ndarray:
        reach = INNER_CORNERS if name.startswith("inner") else 1.0
        x = s * reach * np.linalg.norm(half) + shifts[name] * (1 - s**2)
        y = middle * (1 - (s * reach) ** 2) + (depth - middle) * (1 - np.abs(s) ** EDGE_POWERS[name])
        return centre + x[:, None] * across + y[:, None] * down

    outer_top, inner_top, inner_bottom, outer_bottom = (
        edge(name, depth) for name, depth in zip(EDGE_POWERS, depths, strict=True)
    )
    for outer, inner, rings in (
        (outer_top, inner_top, (at.UPPER_LIP_OUTER, *at.UPPER_LIP_MIDDLE, at.UPPER_LIP_INNER)),
        (outer_bottom, inner_bottom, (at.LOWER_LIP_OUTER, *at.LOWER_LIP_MIDDLE, at.LOWER_LIP_INNER)),
    ):
        for i, ring in enumerate(rings):
            laid[list(ring)] = outer + (inner - outer) * (i / (len(rings) - 1))
