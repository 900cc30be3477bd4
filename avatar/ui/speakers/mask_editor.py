"""The editor in which each speaker's place in the portrait is painted, in a colour of its own."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any, ClassVar

import gradio as gr
import numpy as np
from gradio.component_meta import ComponentMeta
from gradio.components.base import server
from gradio.components.image_editor import AcceptBlobs, EditorData
from PIL import Image

from avatar.media.brushes import BRUSHES

CANVAS_PX = 1024  # longer side of the portrait in the editor
MOST_BYTES = 4 * 2**20  # of one painted layer, as a PNG of a few plain colours
KEPT_BYTES = 64 * 2**20  # of all that were sent and not yet fetched
PAINTED_NAME = "painting.png"  # in messages
_SHOWN_THROUGH = 0.62  # opacity of the paint


class PaintedLayers:
    """Layers that browsers have sent, until the event they belong to fetches them. Bounded; thread-safe."""

    def __init__(self, most_bytes: int = KEPT_BYTES) -> None:
        self._most_bytes, self._lock = most_bytes, threading.Lock()
        self._layers: OrderedDict[str, bytes] = OrderedDict()  # the oldest first

    def keep(self, id: str, layer: bytes) -> None:
        """Keep a layer, in place of the oldest ones where there is no room."""
        with self._lock:
            self._layers[id] = layer
            self._layers.move_to_end(id)
            while sum(map(len, self._layers.values())) > self._most_bytes:
                self._layers.popitem(last=False)

    def fetch(self, id: str) -> bytes | None:
        """A layer, which is not kept any longer; None for one that is not there."""
        with self._lock:
            return self._layers.pop(id, None)


class _WithoutStub(ComponentMeta):
    """Gradio's own metaclass writes a .pyi file beside the source of every component."""

    def __new__(cls, name: str, bases: tuple[type, ...], attributes: dict[str, Any]) -> Any:
        return super(ComponentMeta, cls).__new__(cls, name, bases, attributes)


class MaskEditor(gr.ImageEditor, metaclass=_WithoutStub):
    """Gradio's image editor with a brush for each speaker. Its value is what was painted: see `preprocess`.

    Gradio's own keeps whatever is sent to it, and decodes it in this process.
    """

    is_template = True  # the page draws it as it draws gr.ImageEditor
    sent: ClassVar[PaintedLayers] = PaintedLayers()  # a session's copy of the component has the same

    @server
    def accept_blobs(self, data: AcceptBlobs) -> None:
        """Take what was painted; the portrait below it, and both together, come along and are left out."""
        sent, layer = data.data, data.files[0][1]
        if sent["type"] == "layer" and len(layer) <= MOST_BYTES:
            self.sent.keep(str(sent["id"])[:64], layer)

    def preprocess(self, payload: EditorData | None) -> Path | None:  # type: ignore[override]
        """The painted layer's file among the uploads; None for nothing."""
        if payload is None:
            return None
        if payload.id is None:
            return Path(payload.layers[0].path) if payload.layers else None
        layer = self.sent.fetch(payload.id[:64])
        if layer is None:
            return None
        folder = Path(self.GRADIO_CACHE) / secrets.token_hex(16)  # removed as uploads are
        folder.mkdir(mode=0o700, parents=True)
        path = folder / PAINTED_NAME
        path.write_bytes(layer)
        return path


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
