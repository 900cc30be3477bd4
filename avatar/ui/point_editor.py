"""The seven points of a face: whether the page must ask for them, and the editor that asks."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from avatar.events import Notice
from avatar.media.limits import InputLimits
from avatar.media.readers import Reader
from avatar.preset import Preset
from avatar.sizes import video_size
from avatar.ui.examples import Examples
from avatar.ui.i18n import Language, text
from avatar.ui.payloads import face_points
from avatar.ui.theme import script

POINTS = (
    "mouth_left",
    "mouth_right",
    "inner_lip_top",
    "inner_lip_bottom",
    "outer_lip_top",
    "outer_lip_bottom",
    "chin",
)
# Where the points start when nothing is known: far enough apart to be distinguished and taken apart.
START: Mapping[str, tuple[float, float]] = {
    "mouth_left": (0.37, 0.64),
    "mouth_right": (0.63, 0.64),
    "inner_lip_top": (0.5, 0.61),
    "inner_lip_bottom": (0.5, 0.67),
    "outer_lip_top": (0.5, 0.55),
    "outer_lip_bottom": (0.5, 0.73),
    "chin": (0.5, 0.86),
}
EDITOR_PX = 1024  # longer side of the picture in the editor

Points = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class PortraitCheck:
    """What is known of a portrait's face.

    verdict: "face", "weak", "none", or "placed" where a bundled portrait's sidecar has the points.
    picture: JPEG for the editor, None when the page need not ask. notices: what about the portrait keeps its
    speech from being seen. width, height: the portrait's, upright.
    """

    verdict: str
    points: Points | None = None
    picture: bytes | None = None
    notices: tuple[Notice, ...] = ()
    width: int = 0
    height: int = 0


def look_at(
    portrait: Path,
    examples: Examples,
    limits: InputLimits,
    name: str | None = None,
    *,
    preset: Preset | None = None,
    reader: Reader | None = None,
) -> PortraitCheck:
    """Whether the preview engine finds the face by itself, and what of it will be seen in a preset's video.

    reader: how the picture is decoded; by default in this process. Raises: BadInput for a picture that cannot
    be used.
    """
    from avatar.preview.face import find_face
    from avatar.preview.points import load_sidecar
    from avatar.preview.portrait_notices import concerns

    pixels = (reader or Reader()).portrait(portrait, name=name, limits=limits).pixels
    height, width = pixels.shape[:2]
    bundled = examples.bundled(portrait)
    if bundled is not None:
        sidecar = load_sidecar(bundled)
        if sidecar is not None:
            placed = {key: point for key, point in asdict(sidecar).items() if point is not None}
            return PortraitCheck("placed", placed, width=width, height=height)
    found = find_face(pixels)
    notices: tuple[Notice, ...] = ()
    if preset is not None:
        size = video_size(preset.engine, width, height, preset.generation.size)
        notices = tuple(concerns(pixels, found.face, size, name or portrait.name))
    if found.verdict == "face":
        return PortraitCheck("face", notices=notices, width=width, height=height)
    points = START if found.face is None else _points_of(found.face.landmarks, width, height)
    return PortraitCheck(found.verdict, points, _jpeg(pixels), notices, width, height)


def editor(elem_id: str) -> gr.HTML:
    """The component; its value is {"for", "verdict", "points", "head_only"}, or None without a portrait."""
    return gr.HTML(
        value=None,
        html_template='<div class="points"></div>',
        js_on_load=script("points.js"),
        apply_default_css=False,
        elem_id=elem_id,
        image="",
        words={},
    )


def question(look: PortraitCheck, portrait: Path, language: Language) -> dict[str, Any]:
    """The update that makes the editor ask, or be silent. portrait: what the answer will be for."""
    value = {"for": portrait.name, "verdict": look.verdict, "points": look.points, "head_only": False}
    if look.picture is None:
        return gr.update(value=value, image="")
    keys = (
        *POINTS,
        "points_title",
        "points_none",
        "points_weak",
        "points_keys",
        "points_bad",
        "points_head_only",
    )
    return gr.update(
        value=value,
        image="data:image/jpeg;base64," + base64.b64encode(look.picture).decode(),
        words={key: text(key, language) for key in keys},
    )


def answer(value: Mapping[str, Any] | None) -> Points | None:
    """The points that go into the request. None: the engine finds the face itself, or needs none."""
    if not value or value.get("head_only"):
        return None
    return face_points(value.get("points"))


def head_only(value: Mapping[str, Any] | None) -> bool:
    """Whether the user chose to have the head move and the mouth stay shut."""
    return bool(value and value.get("head_only"))


def _points_of(landmarks: np.ndarray, width: int, height: int) -> Points:
    """The seven points of a mesh, as fractions of the picture; those outside it on its nearest edge."""
    from avatar.preview import topology

    rows = {
        "mouth_left": topology.MOUTH_LEFT,
        "mouth_right": topology.MOUTH_RIGHT,
        "inner_lip_top": topology.INNER_LIP_TOP,
        "inner_lip_bottom": topology.INNER_LIP_BOTTOM,
        "outer_lip_top": topology.UPPER_LIP_OUTER[len(topology.UPPER_LIP_OUTER) // 2],
        "outer_lip_bottom": topology.LOWER_LIP_OUTER[len(topology.LOWER_LIP_OUTER) // 2],
        "chin": topology.CHIN,
    }
    return {
        name: (float(np.clip(x / width, 0, 1)), float(np.clip(y / height, 0, 1)))
        for name, (x, y) in ((name, landmarks[row, :2]) for name, row in rows.items())
    }


def _jpeg(pixels: np.ndarray) -> bytes:
    from PIL import Image

    picture = Image.fromarray(pixels)
    picture.thumbnail((EDITOR_PX, EDITOR_PX))
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=88)
    return data.getvalue()
