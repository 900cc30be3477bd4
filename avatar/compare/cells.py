"""Varied settings: names and values become cells, one per combination."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import Any

from avatar.batch.jobs import BatchEntry
from avatar.errors import BadInput
from avatar.hardware.inventory import Inventory
from avatar.long.job import Job
from avatar.media.files import joined_name
from avatar.preset import Fallback, load_preset
from avatar.settings import SETTINGS

PRESET = "preset"  # may be varied like a setting
MOST_CELLS = 64
_TRUTHS = {"true": True, "yes": True, "1": True, "on": True}
_TRUTHS |= {"false": False, "no": False, "0": False, "off": False}


@dataclass(frozen=True)
class Cell:
    """One combination of values. name: of its video; settings: the varied ones, by name."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """ "infer_frames 48, sample_steps 4" """
        return ", ".join(f"{name} {value}" for name, value in self.settings.items())


@dataclass(frozen=True)
class CellEntry(BatchEntry):
    """A cell as an entry of a batch. Fallbacks are off, so that the result shows what does not fit."""

    def job(self, output: Path, inventory: Inventory, resume: bool) -> Job:
        """See BatchEntry.job."""
        made = super().job(output, inventory, resume)
        return replace(made, preset=replace(made.preset, fallback=Fallback(())))


def read_vary(texts: Sequence[str]) -> list[Cell]:
    """Parse texts such as "infer_frames=48,32" into cells, one per combination of values, in the order given.

    Raises: BadInput for an unknown setting, an invalid value, or too many cells.
    """
    varied: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not values.strip():
            raise BadInput(f"--vary {text[:60]!r} names no values.", "Write it as infer_frames=48,32.")
        if name != PRESET and name not in SETTINGS:
            near = get_close_matches(name, [PRESET, *SETTINGS], 1)
            hint = f"Did you mean {near[0]}?" if near else "See `python -m avatar generate --help`."
            raise BadInput(f"There is no setting {name[:60]!r} to vary.", hint)
        if name in varied:
            raise BadInput(f"{name} is varied twice.", f"Give all its values at once: {name}=A,B.")
        found = [_value(name, value.strip()) for value in values.split(",")]
        if len(set(found)) < len(found):
            raise BadInput(f"--vary {text[:60]} has a value twice.", "Give each once.")
        varied[name] = found
    combinations = list(product(*varied.values()))
    if len(combinations) > MOST_CELLS:
        raise BadInput(f"That makes {len(combinations)} videos.", f"Vary less: {MOST_CELLS} at most.")
    return [_cell(dict(zip(varied, values))) for values in combinations]


def _cell(settings: dict[str, Any]) -> Cell:
    words = (f"{name}_{value}".replace("*", "x").replace("/", "_") for name, value in settings.items())
    return Cell(joined_name(*words), settings)


def _value(name: str, text: str) -> Any:
    if name == PRESET:
        load_preset(text)  # raises for an invalid preset, before any run
        return text
    kind = SETTINGS[name].kind
    try:
        value = _TRUTHS[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError) as error:
        allowed = SETTINGS[name].setting.allowed or ("True or False" if kind is bool else "a number")
        raise BadInput(f"{name} cannot be {text[:60]!r}.", f"Give {allowed}.") from error
    return value
