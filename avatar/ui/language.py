"""Choose the texts of translations.py in the reader's language.

Text that Gradio renders is translated by the browser (gr.I18n); text that we render, by the request's
Accept-Language, which browsers send from the same setting.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import gradio as gr
from starlette.requests import HTTPConnection

from avatar.errors import AvatarError
from avatar.planning.plan import describe
from avatar.ui.translations import COMPARED, ITEMS, NOTICES, RUNGS, TEXT

Language = str  # "en" or "zh"

_COMPARED = re.compile(
    "|".join(rf"\b{re.escape(one)}(?!\w)" for one in sorted(COMPARED, key=len, reverse=True))
)


def text(key: str, language: Language, **values: object) -> str:
    """The text of a key, with {names} filled in. Raises: KeyError for an unknown key."""
    words = TEXT[key][1 if language == "zh" else 0]
    return words.format(**values) if values else words


def choices_of(name: str, values: Iterable[str], language: Language) -> list[tuple[str, str]]:
    """A dropdown's choices for a setting's values: the label shown, and the value."""
    return [
        (text(f"{name}_{value}", language) if f"{name}_{value}" in TEXT else value, value) for value in values
    ]


def notice_words(code: str, english: str, values: Mapping[str, object], language: Language) -> str:
    """A notice in the page's language, or in English if it has no translation."""
    if language != "zh" or code not in NOTICES:
        return english
    try:
        return NOTICES[code].format_map({**values, "text": english})
    except KeyError:  # recorded by an earlier version, with fewer values
        return english


def rung_words(rung: str, code: str, english: str, values: Mapping[str, object], language: Language) -> str:
    """Which rung of the out-of-memory ladder was taken, and why."""
    name = RUNGS.get(rung, rung) if language == "zh" else rung
    return notice_words(code, english, {**values, "rung": name}, language) or name


def item_words(name: str, language: Language) -> str:
    """The name of a plan's item."""
    return ITEMS.get(name, describe(name)) if language == "zh" else describe(name)


def compared_words(english: str, language: Language, whole: bool = False) -> str:
    """A heading or cell of a comparison's table; text without a translation stays English.

    whole: translate the text as a whole or not at all, since it may hold words that are not the page's.
    """
    if language != "zh" or whole:
        return COMPARED.get(english, english) if language == "zh" else english
    return _COMPARED.sub(lambda found: COMPARED[found[0]], english)


def language_of(request: gr.Request | HTTPConnection | None) -> Language:
    """ "zh" when the browser prefers any Chinese over English, else "en"."""
    accepted = "" if request is None else request.headers.get("accept-language", "")
    for choice in sorted(accepted.split(","), key=_weight, reverse=True):
        tag = choice.split(";")[0].strip().lower()[:2]
        if tag in ("en", "zh"):
            return tag
    return "en"


def browser_table() -> gr.I18n:
    """The table for Gradio's own components."""
    english = {key: words[0] for key, words in TEXT.items()}
    chinese = {key: words[1] for key, words in TEXT.items()}
    return gr.I18n(en=english, zh=chinese, **{"zh-CN": chinese, "zh-TW": chinese})


def error_title(error: AvatarError, language: Language) -> str:
    """A toast's heading."""
    key = f"error_{type(error).__name__}"
    return text(key if key in TEXT else "error_AvatarError", language)


def _weight(choice: str) -> float:
    match = re.search(r";\s*q=([\d.]+)", choice)
    return float(match[1]) if match else 1.0
