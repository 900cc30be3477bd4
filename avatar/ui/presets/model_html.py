"""HTML of the missing model: what it would make possible, the download button, and the progress."""

from __future__ import annotations

from html import escape

from avatar.media.files import minutes
from avatar.runtime.model_download import FetchReading
from avatar.ui.html import meter, share, tag
from avatar.ui.language import Language, text

GB, MB = 10**9, 10**6
FETCH, PAUSE = "fetch", "pause"


def render_model(
    reading: FetchReading, title: str, missing_bytes: int, language: Language, *, may: bool
) -> str:
    """ "" if nothing is missing. title: of the preset that lacks the model. may: whether to show a button."""
    if reading.state == "done":
        return tag("p", escape(text("model_done", language)), class_="model", role="status")
    if not missing_bytes:
        return ""
    words = text("model_missing", language, preset=title, size=f"{missing_bytes / GB:.1f}")
    parts = [tag("p", escape(words))]
    if reading.total_bytes:
        parts.append(_progress(reading, language))
    if reading.error:
        parts.append(tag("p", escape(reading.error), class_="refusal"))
    if may:
        action = PAUSE if reading.state == "running" else FETCH
        key = {"running": "model_pause", "idle": "model_get"}.get(reading.state, "model_resume")
        label = escape(text(key, language))
        button = {"type": "button", "class_": "model-button", "data_action": action, "data_id": "model"}
        parts.append(tag("button", label, **button))
    else:
        parts.append(tag("p", escape(text("model_admin", language)), class_="muted"))
    return tag("div", "".join(parts), class_="model", data_state=reading.state)


def _progress(reading: FetchReading, language: Language) -> str:
    figures = f"{reading.done_bytes / GB:.1f} / {reading.total_bytes / GB:.1f} GB"
    if reading.state == "running" and reading.rate:
        figures += f" · {reading.rate / MB:.0f} MB/s"
        if reading.remaining_s is not None:
            figures += " · " + text("remaining", language, time=minutes(reading.remaining_s))
    bar = tag("i", style=f"width: {share(reading.done_bytes, reading.total_bytes)}")
    return meter(text("model_progress", language), figures, bar)
