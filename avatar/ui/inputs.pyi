"""Gradio's pickers of pictures and sounds, handing over the file itself: whether it is any good, intake says."""

from __future__ import annotations

from typing import Any

import gradio as gr

from gradio.events import Dependency

class PortraitPicker(gr.Image):
    """gr.Image would decode the picture, and show the server's path when it cannot."""

    is_template = True

    def preprocess(self, payload: Any) -> str | None:  # type: ignore[override]
        """The uploaded file's path."""
        return None if payload is None else payload.path
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component


class SpeechPicker(gr.Audio):
    """gr.Audio hands over paths already; this one also for files that it would not play."""

    is_template = True

    def preprocess(self, payload: Any) -> str | None:  # type: ignore[override]
        """The uploaded file's path."""
        return None if payload is None else payload.path
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component