"""The form's fields: their choices in the page's language, and the pose video below them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from avatar.media.upscale import has_arnet
from avatar.settings import FORM, SETTINGS, refusal
from avatar.ui.language import Language, choices_of


def form_choices(name: str, language: Language) -> dict[str, Any]:
    """The choices of a setting that takes one of several words, for an update; {} for any other.

    What needs a package that is not installed is left out.
    """
    values = [value for value in SETTINGS[name].choices if value != "1080p-arnet" or has_arnet()]
    return {"choices": choices_of(name, values, language)} if values else {}


def leading_pose(form: Sequence[Any], engine: str) -> Path | None:
    """The pose video that leads a run, which comes after the form's values.

    None without one, and for an engine that has no use for it: then its picker is hidden, and may still hold
    one.
    """
    pose = next(iter(form[len(FORM) :]), None)
    return Path(pose) if pose and not refusal(engine, "pose") else None
