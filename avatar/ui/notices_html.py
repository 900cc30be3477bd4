"""HTML of notices: what is good to know of a portrait, a recording or a run."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from avatar.events import Notice
from avatar.ui.html import tag
from avatar.ui.language import Language, notice_words, rung_words, text


def render_notices(notices: Sequence[Notice], language: Language) -> str:
    """The notices, warnings first; "" if there are none."""
    ordered = sorted(notices, key=lambda notice: notice.level != "warning")
    lines = [tag("li", _words(notice, language), data_level=notice.level) for notice in ordered]
    return tag("ul", "".join(lines), class_="notices", aria_label=text("notices", language)) if lines else ""


def _words(notice: Notice, language: Language) -> str:
    if notice.rung is None:
        return escape(notice_words(notice.code, notice.text, notice.values, language))
    words = rung_words(notice.rung, notice.code, notice.text, notice.values, language)
    return tag("b", escape(text("stepped_down", language))) + " " + escape(words)
