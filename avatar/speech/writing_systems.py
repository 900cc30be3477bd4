"""The scripts that a text is written in."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

# First words of Unicode names that differ from the script's name.
_NAMES = {"CJK": "Han", "IDEOGRAPHIC": "Han", "KANGXI": "Han", "FULLWIDTH": "Latin", "HALFWIDTH": "Katakana"}
_OF_NO_SCRIPT = ("MODIFIER", "MATHEMATICAL", "DOUBLE-STRUCK", "SCRIPT", "FEMININE", "MASCULINE", "MICRO")

LATIN, HAN, HIRAGANA, KATAKANA, DEVANAGARI = "Latin", "Han", "Hiragana", "Katakana", "Devanagari"


def script_of(char: str) -> str:
    """A letter's script, such as "Latin" or "Han"; "" for a mark, digit or sign, common to all scripts."""
    if not char.isalpha():
        return ""
    first = unicodedata.name(char, "").partition(" ")[0]
    if not first or first in _OF_NO_SCRIPT:
        return ""
    return _NAMES.get(first) or first.split("-")[0].capitalize()


def scripts_in(text: str) -> list[str]:
    """The scripts of a text's letters, most used first."""
    counts: dict[str, int] = {}
    for char in text:
        if script := script_of(char):
            counts[script] = counts.get(script, 0) + 1
    return sorted(counts, key=lambda script: -counts[script])


def is_spoken(text: str) -> bool:
    """Whether a text has anything to pronounce: a letter or a digit."""
    return any(char.isalnum() for char in text)


def is_dense(text: str) -> bool:
    """Whether a text's main script writes a syllable or word per letter, as Chinese does."""
    scripts = scripts_in(text)
    return bool(scripts) and scripts[0] in (HAN, HIRAGANA, KATAKANA, "Hangul")


def listed(scripts: Iterable[str]) -> str:
    """ "Han and Latin" """
    *others, last = scripts
    return f"{', '.join(others)} and {last}" if others else last
