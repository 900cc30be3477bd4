"""Choose the texts of translations/ in the reader's language.

Text that Gradio renders is translated by the browser (gr.I18n); text that we render, by the request's
Accept-Language, which browsers send from the same setting.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache

import gradio as gr
from starlette.requests import HTTPConnection

from avatar.errors import AvatarError
from avatar.planning.plan import describe
from avatar.ui.translations import TRANSLATIONS, Language, Translation


def translation(language: Language) -> Translation:
    """The texts of a language, English for one that is not translated."""
    return TRANSLATIONS.get(language, TRANSLATIONS["en"])


def has_text(key: str) -> bool:
    """Whether the page has a text of this key."""
    return key in TRANSLATIONS["en"].page


def text(key: str, language: Language, **values: object) -> str:
    """The text of a key, with {names} filled in. Raises: KeyError for an unknown key."""
    words = translation(language).page[key]
    return words.format(**values) if values else words


def program_words(table: str, language: Language) -> Mapping[str, str]:
    """Translations of what the rest of the program says in English; see Translation."""
    return translation(language).program.get(table, {})


def choices_of(name: str, values: Iterable[str], language: Language) -> list[tuple[str, str]]:
    """A dropdown's choices for a setting's values: the label shown, and the value."""
    return [
        (text(f"{name}_{value}", language) if has_text(f"{name}_{value}") else value, value)
        for value in values
    ]


def notice_words(code: str, english: str, values: Mapping[str, object], language: Language) -> str:
    """A notice in the page's language, or in English if it has no translation."""
    words = program_words("notices", language)
    if code not in words:
        return english
    try:
        return words[code].format_map({**values, "text": english})
    except KeyError:  # recorded by an earlier version, with fewer values
        return english


def rung_words(rung: str, code: str, english: str, values: Mapping[str, object], language: Language) -> str:
    """Which rung of the out-of-memory ladder was taken, and why."""
    name = program_words("rungs", language).get(rung, rung)
    return notice_words(code, english, {**values, "rung": name}, language) or name


def item_words(name: str, language: Language) -> str:
    """The name of a plan's item."""
    return program_words("plan_items", language).get(name, describe(name))


def compared_words(english: str, language: Language, whole: bool = False) -> str:
    """A heading or cell of a comparison's table; text without a translation stays English.

    whole: translate the text as a whole or not at all, since it may hold words that are not the page's.
    """
    words = program_words("compared", language)
    if whole or not words:
        return words.get(english, english)
    return _any_compared(language).sub(lambda found: words[found[0]], english)


@cache
def _any_compared(language: Language) -> re.Pattern[str]:
    """Whatever of a comparison's words a language translates, the longest first."""
    longest_first = sorted(program_words("compared", language), key=len, reverse=True)
    return re.compile("|".join(rf"\b{re.escape(one)}(?!\w)" for one in longest_first))


def language_of(request: gr.Request | HTTPConnection | None) -> Language:
    """The translated language that the browser prefers; any Chinese is "zh". English without a preference."""
    accepted = "" if request is None else request.headers.get("accept-language", "")
    for choice in sorted(accepted.split(","), key=_weight, reverse=True):
        tag = choice.split(";")[0].strip().lower()[:2]
        if tag in TRANSLATIONS:
            return tag
    return "en"


def browser_table() -> gr.I18n:
    """The table for Gradio's own components."""
    return gr.I18n(**{name: dict(one.page) for one in TRANSLATIONS.values() for name in one.browser_names})


def error_title(error: AvatarError, language: Language) -> str:
    """A toast's heading."""
    keys = (f"error_{kind.__name__}" for kind in type(error).__mro__)
    return text(next(filter(has_text, keys)), language)


def _weight(choice: str) -> float:
    match = re.search(r";\s*q=([\d.]+)", choice)
    return float(match[1]) if match else 1.0
