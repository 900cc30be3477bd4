"""The choices for a comparison on the page: gallery videos, settings and their values; no Gradio here."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from avatar.compare.cells import PRESET, Cell, read_vary
from avatar.errors import BadInput
from avatar.runtime.gallery import GalleryEntry
from avatar.settings import FORM, SETTINGS
from avatar.ui.language import Language, choices_of, text
from avatar.ui.state.app_state import AppState

MOST_WORDS = 4  # differences named in a label
SAME_FOR_PRESETS = ("seed", "trim", "motion")  # form settings that apply when presets are compared

Choice = tuple[str, str]  # the label shown, and the value


def finished(entries: Sequence[GalleryEntry]) -> list[GalleryEntry]:
    """The entries that can be played."""
    return [entry for entry in entries if entry.about.duration_s]


def video_choices(entries: Sequence[GalleryEntry], language: Language) -> list[Choice]:
    """A dropdown's choices of videos; the values are ids."""
    return [(_video_words(entry, language), entry.id) for entry in entries]


def setting_choices(app_state: AppState, preset: str, language: Language) -> list[Choice]:
    """What two videos may differ in: the preset, and each setting that the chosen one's engine can honour."""
    offered = app_state.machine.honoured(app_state.machine.resolved(preset))
    return [
        (text("presets", language), PRESET),
        *((setting_words(n, language), n) for n in FORM if n in offered),
    ]


def value_choices(app_state: AppState, name: str, language: Language) -> list[Choice]:
    """Values that the page suggests for a setting; none if any number will do."""
    if name == PRESET:
        found = app_state.machine.verdicts()
        return [
            (one.title, one.name) for one in app_state.presets if one.name != "auto" and found[one.name].ok
        ]
    if name not in FORM:
        return []
    setting = SETTINGS[name]
    assert setting.setting.widget is not None, "FORM holds settings with a widget"
    options = setting.setting.widget.options
    if setting.kind is bool:
        return [(text("compare_on", language), "true"), (text("compare_off", language), "false")]
    if "step" in options:
        steps = round((options["maximum"] - options["minimum"]) / options["step"])
        values = [setting.kind(options["minimum"] + at * options["step"]) for at in range(steps + 1)]
        return [(str(value), str(value)) for value in values]
    return choices_of(name, options.get("choices", ()), language)


def own_value(app_state: AppState, preset: str, form: Sequence[Any], name: str) -> str:
    """A setting's current value on the page, as value_choices writes it."""
    if name == PRESET:
        return app_state.machine.resolved(preset).name
    value = dict(zip(FORM, form)).get(name)
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def read_pair(app_state: AppState, name: str, values: tuple[str, str], language: Language) -> list[Cell]:
    """Two cells that differ in one setting. Raises: BadInput."""
    a, b = (value.strip() for value in values)
    if not a or not b or a == b or "," in a + b:
        raise BadInput(text("compare_values", language))
    if name == PRESET:
        for value in (a, b):
            app_state.machine.preset(value)  # the page's only: a visitor must not name files of this machine
    elif name not in FORM:
        raise BadInput(text("gone", language))
    return read_vary([f"{name}={a},{b}"])


def chosen_settings(
    app_state: AppState, preset: str, form: Sequence[Any], cell: Cell
) -> tuple[str, dict[str, Any]]:
    """The preset's name and the settings of one of the two videos: the form's, except for the varied one."""
    varied = dict(cell.settings)
    name = str(varied.pop(PRESET, preset))
    settings = app_state.machine.form_settings(preset, form)
    if PRESET in cell.settings:
        offered = app_state.machine.honoured(app_state.machine.resolved(name))
        settings = {key: settings[key] for key in SAME_FOR_PRESETS if key in offered and key in settings}
    return name, {**settings, **varied}


def labels(a: GalleryEntry, b: GalleryEntry, language: Language) -> tuple[str, str]:
    """Labels for two videos: what they differ in, otherwise when they were made."""
    known = [_facts(entry, language) for entry in (a, b)]
    differing = [name for name in known[0] if known[0][name] != known[1].get(name)][:MOST_WORDS]
    first, second = (
        ", ".join(_called(name, facts.get(name), language) for name in differing) or _made(entry)
        for entry, facts in zip((a, b), known)
    )
    return first, second


def setting_words(name: str, language: Language) -> str:
    """A setting's label, without the part in brackets."""
    return text(name, language).split(" (")[0].split("（")[0]


def _called(name: str, value: Any, language: Language) -> str:
    if isinstance(value, bool):
        value = text("compare_on" if value else "compare_off", language)
    return (
        str(value) if name in ("portrait", "speech", PRESET) else f"{setting_words(name, language)} {value}"
    )


def _facts(entry: GalleryEntry, language: Language) -> Mapping[str, Any]:
    about = entry.about
    shaping = {name: about.settings[name] for name in FORM if name in about.settings}
    return {"portrait": about.portrait, "speech": about.speech, PRESET: about.preset, **shaping}


def _made(entry: GalleryEntry) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry.about.created))


def _video_words(entry: GalleryEntry, language: Language) -> str:
    about = entry.about
    length = text("seconds", language, s=f"{about.duration_s:.0f}")
    size = str(about.settings.get("size", "")).replace("*", "×")
    made = time.strftime("%m-%d %H:%M", time.localtime(about.created))
    return " · ".join(filter(None, (made, size, length, about.preset, f"{about.portrait}, {about.speech}")))
