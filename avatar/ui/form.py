"""The form's fields: their choices in the page's language."""

from __future__ import annotations

from typing import Any

from avatar.media.upscale import has_arnet
from avatar.settings import SETTINGS
from avatar.ui.language import Language, choices_of


def form_choices(name: str, language: Language) -> dict[str, Any]:
    """The choices of a setting that takes one of several words, for an update; {} for any other.

    What needs a package that is not installed is left out.
    """
    values = [value for value in SETTINGS[name].choices if value != "1080p-arnet" or has_arnet()]
    return {"choices": choices_of(name, values, language)} if values else {}
