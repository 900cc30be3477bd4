"""The preset that will run here, from a preset's name and a user's settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from avatar.errors import BadInput
from avatar.hardware.inventory import Inventory
from avatar.planning.verdict import resolve
from avatar.preset import Preset, load_preset
from avatar.settings import refuse_settings


def choose(
    name: str,
    given: Mapping[str, Any],
    inventory: Inventory,
    also_given: Iterable[str] = (),
    num_speakers: int = 1,
) -> Preset:
    """The named preset with the given settings, `auto` resolved for this machine.

    also_given: names of other options that the user set, which not every engine supports. num_speakers: see
    judge.
    Raises: BadInput for an unknown preset or a setting that its engine does not support, DoesNotFit.
    """
    asked = load_preset(name)
    chosen = resolve(asked.with_settings(**given), inventory, num_speakers=num_speakers)
    try:
        refuse_settings(chosen.engine, (*given, *also_given))
    except BadInput as error:
        if asked.engine != "auto":
            raise
        raise BadInput(
            f"{error.message} On this machine, auto takes the preset {chosen.name}.",
            "Leave it out; or see `python -m avatar doctor` for what the other presets need.",
        ) from error
    chosen = chosen.with_settings(**given)
    if given.get("ring_dtype") is not None and chosen.memory.attention_dtype == "int8":
        raise BadInput(
            "Attention in int8 keeps rings in its own form; it cannot honour ring_dtype.",
            "Leave ring_dtype out, or set attention_dtype to bf16.",
        )
    return chosen
