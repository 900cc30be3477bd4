"""The faces of a portrait and their seven points: what the page shows, and whether it must ask for them."""

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
from avatar.settings import Picture
from avatar.sizes import video_size
from avatar.ui.language import Language, text
from avatar.ui.payloads import mapping
from avatar.ui.portrait.framing_panel import KEPT, UPLOADED, Points, SeenFace, panel_words
from avatar.ui.state.examples import Examples
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
# Where the points start if no face is known: far enough apart to be distinguished and dragged.
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


@dataclass(frozen=True)
class PortraitCheck:
    """What is known of a portrait's face.

    faces: at least one, from left to right; where none was found, one to be placed by hand. main: the index
    of the one that speaks unless another is chosen. picture: JPEG. notices: what makes the speech hard to
    see in this portrait. width, height: the portrait's, upright.
    """

    faces: tuple[SeenFace, ...]
    main: int
    picture: bytes
    notices: tuple[Notice, ...]
    width: int
    height: int

    @property
    def verdict(self) -> str:
        """ "face", "weak", "none", or "placed" where a bundled portrait's sidecar has the points."""
        return self.faces[self.main].verdict

    @property
    def points(self) -> Points:
        return self.faces[self.main].points

    @property
    def asks(self) -> bool:
        """Whether the preview cannot do without the user's points."""
        return self.verdict in ("weak", "none")


def look_at(
    portrait: Path,
    examples: Examples,
    limits: InputLimits,
    name: str | None = None,
    *,
    preset: Preset | None = None,
    reader: Reader | None = None,
) -> PortraitCheck:
    """Which faces the preview engine finds by itself, and how much of one a preset's video will show.

    reader: how the picture is decoded; by default in this process. Raises: BadInput for a picture that cannot
    be used.
    """
    from avatar.preview.face_finder import Finder, boxes
    from avatar.preview.points import load_sidecar
    from avatar.preview.portrait_notices import concerns
    from avatar.preview.recent import known_faces

    pixels = (reader or Reader()).portrait(portrait, name=name, limits=limits).pixels
    height, width = pixels.shape[:2]

    def by_hand(verdict: str, points: Points) -> tuple[SeenFace]:
        return (SeenFace(verdict, Finder().placed(points, width, height), points),)

    bundled = examples.bundled(portrait)
    sidecar = None if bundled is None else load_sidecar(bundled)
    if sidecar is not None:
        placed = {key: point for key, point in asdict(sidecar).items() if point is not None}
        return PortraitCheck(by_hand("placed", placed), 0, _jpeg(pixels), (), width, height)
    found = known_faces(pixels)
    main = found.found[found.main].face if found.found else None
    notices: tuple[Notice, ...] = ()
    if preset is not None:
        size = video_size(preset.engine, width, height, preset.generation.size)
        notices = tuple(concerns(pixels, main, size, name or portrait.name))
    seen = tuple(
        SeenFace(one.verdict, box, _points_of(one.face.landmarks, width, height))
        for one, box in zip(found.found, boxes(found, pixels).boxes, strict=True)
        if one.face is not None
    )
    return PortraitCheck(seen or by_hand("none", START), found.main, _jpeg(pixels), notices, width, height)


def concerns_about(
    portrait: Path,
    picture_settings: Picture,
    points: Points | None,
    preset: Preset,
    limits: InputLimits,
    reader: Reader,
) -> tuple[Notice, ...]:
    """What makes the speech hard to see in a portrait framed as chosen. Raises: BadInput."""
    from avatar.media.framing import framed
    from avatar.preview.face_detection import find_face
    from avatar.preview.face_finder import Finder
    from avatar.preview.portrait_notices import concerns

    pixels = reader.portrait(portrait, name=portrait.name, limits=limits).pixels
    shown = framed(pixels, picture_settings, portrait.name, points=points, finder=Finder())
    height, width = shown.pixels.shape[:2]
    size = video_size(preset.engine, width, height, preset.generation.size)
    face = None if points else find_face(shown.pixels).face
    small = [one for one in shown.notices if one.code == "small_crop"]
    return (*small, *concerns(shown.pixels, face, size, portrait.name))


def editor(elem_id: str) -> gr.HTML:
    """The component. Its value is None without a portrait, else what question() puts there.

    The user can change these keys: face, points, edited, head_only, framing, aspect, extend,
    background and background_file.
    """
    return gr.HTML(
        value=None,
        html_template='<div class="points"></div>',
        js_on_load=script("framing.js") + script("points.js"),
        apply_default_css=False,
        elem_id=elem_id,
        image="",
        words={},
        placed={},
    )


def question(
    look: PortraitCheck, portrait: Path, language: Language, engine: str = "preview", before: Any = None
) -> dict[str, Any]:
    """The update that shows the faces, and asks for points where the engine needs them.

    portrait: the one that the answer will be for. before: the component's value; choices made in it for the
    same portrait are kept.
    """
    earlier = mapping(before)
    kept = {
        name: earlier[name]
        for name in (*KEPT, UPLOADED)
        if earlier.get("for") == portrait.name and name in earlier
    }
    width, height = look.width, look.height
    default = Picture()
    value = {
        "for": portrait.name,
        "engine": engine,
        "size": [width, height],
        "faces": [one.as_value(width, height) for one in look.faces],
        "face": look.main,
        "verdict": look.verdict,
        "points": look.points,
        "edited": False,
        "head_only": False,
        "small": any(one.code == "small_face" for one in look.notices),
        **{name: getattr(default, name) for name in KEPT},
        **kept,
    }
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
        words={**panel_words(language), **{key: text(key, language) for key in keys}},
    )


def head_only(value: Mapping[str, Any] | None) -> bool:
    """Whether the user chose that only the head moves, with the mouth shut."""
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
