"""The page's texts: one TOML file per language, named by its two-letter code. en.toml says how to add one."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

Language = str  # the two-letter code: "en", "zh"


@dataclass(frozen=True)
class Translation:
    """The texts in one language.

    browser_names: the language as browsers name it. page: texts by key. live: those of the tab Live, by key.
    program: tables of what the rest of the program says in English, by code or by the English words; may be
    incomplete.
    """

    browser_names: tuple[str, ...]
    page: Mapping[str, str]
    live: Mapping[str, str]
    program: Mapping[str, Mapping[str, str]]


def read(path: Path) -> Translation:
    """Read a language's file. Raises: ValueError for a key that is there twice, in whichever section."""
    with path.open("rb") as file:
        data = tomllib.load(file)
    page: dict[str, str] = {}
    for section in data["page"].values():
        if twice := page.keys() & section.keys():
            raise ValueError(f"{path.name} has {', '.join(sorted(twice))} twice")
        page |= section
    return Translation(tuple(data["browser_names"]), page, data["live"], data.get("program", {}))


TRANSLATIONS: dict[Language, Translation] = {
    path.stem: read(path) for path in sorted(Path(__file__).parent.glob("*.toml"))
}
