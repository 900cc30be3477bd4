"""The editor in which each speaker's place in the portrait is painted, in a colour of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from gradio.component_meta import ComponentMeta
from gradio.components.image_editor import EditorData
from PIL import Image

from avatar.media.brushes import BRUSHES

CANVAS_PX = 1024  # longer side of the portrait in the editor
_SHOWN_THROUGH = 0.62  # opacity of the paint


class _WithoutStub(ComponentMeta):
    """Gradio's own metaclass writes a .pyi file beside the source of every component."""

    def __new__(cls, name: str, bases: tuple[type, ...], attributes: dict[str, Any]) -> Any:
        return super(ComponentMeta, cls).__new__(cls, name, bases, attributes)


class MaskEditor(gr.ImageEditor, metaclass=_WithoutStub):
    """Gradio's image editor with a brush for each speaker. Its value is what was painted: see `preprocess`.

    Gradio's own decodes whatever was uploaded, in this process.
    """

    is_template = True  # the page draws it as it draws gr.ImageEditor

    def preprocess(self, payload: EditorData | None) -> Path | None:  # type: ignore[override]
        """The painted layer's file among the uploads, yet to be read; None for nothing."""
        layers = payload.layers if payload is not None else []
        return Path(layers[0].path) if layers else None


def mask_editor(**options: Any) -> MaskEditor:
    """The component; show a portrait in it with `canvas`."""
    colours: list[Any] = [(css_colour(brush), _SHOWN_THROUGH) for brush in BRUSHES]
    return MaskEditor(
        type="filepath",
        format="jpeg",
        sources=(),
        transforms=(),
        layers=False,
        buttons=[],
        brush=gr.Brush(colors=colours, default_color=colours[0], color_mode="fixed", default_size=40),
        **options,
    )


def canvas(pixels: np.ndarray) -> dict[str, Any]:
    """The editor's value for a portrait, uint8 (H, W, 3) RGB: nothing is painted on it yet."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((CANVAS_PX, CANVAS_PX))
    return {"background": picture, "layers": [], "composite": None}


def css_colour(colour: tuple[int, int, int]) -> str:
    """A brush's colour, RGB, as style sheets have it."""
    return "#" + "".join(f"{part:02x}" for part in colour)
