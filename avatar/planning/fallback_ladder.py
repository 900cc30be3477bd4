"""The out-of-memory ladder as a pure function: which rung comes next, and the preset at that rung."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from avatar.errors import BadInput
from avatar.geometry import Size
from avatar.planning.layout import Layout, unsupported
from avatar.preset import Preset, Rung
from avatar.settings import refusal

log = logging.getLogger(__name__)

SETTING_OF: dict[Rung, str] = {
    "online_decode": "enable_online_decode",
    "infer_frames": "infer_frames",
    "size": "size",
    "sample_steps": "sample_steps",
    "offload": "offload_model",
}
LOW_FRAMES = 32
LOW_SIZE = Size(384, 256)
LOW_STEPS = 3


def rungs(preset: Preset) -> Iterator[tuple[Rung, Preset]]:
    """The preset's rungs in its own order, each applied on top of those before.

    Rungs that change nothing, or that the preset's engine or layout does not support, are skipped.
    """
    for rung in preset.fallback.order:
        change = _change(rung, preset)
        if not change or any(refusal(preset.engine, name) for name in change):
            continue
        lower = preset.with_settings(**change)
        if why_not := _refusal(lower):
            log.info("preset %s: the rung %s is left out. %s", preset.name, rung, why_not)
            continue
        preset = lower
        yield rung, preset


def value(preset: Preset, rung: Rung) -> str:
    """A preset's value of a rung's setting, as text: "32"."""
    return str(preset.setting(SETTING_OF[rung]))


def describe(rung: Rung, preset: Preset) -> str:
    """An applied rung as its setting and value: "infer_frames 32"."""
    return f"{SETTING_OF[rung]} {value(preset, rung)}"


def _change(rung: Rung, preset: Preset) -> dict[str, Any]:
    generation, memory = preset.generation, preset.memory
    size = Size.parse(generation.size)
    match rung:
        case "online_decode":
            return {} if memory.enable_online_decode else {"enable_online_decode": True}
        case "infer_frames":
            return {} if generation.infer_frames <= LOW_FRAMES else {"infer_frames": LOW_FRAMES}
        case "size":
            lower = LOW_SIZE.width * LOW_SIZE.height < size.width * size.height
            return {"size": str(LOW_SIZE)} if lower else {}
        case "sample_steps":
            return {} if generation.sample_steps <= LOW_STEPS else {"sample_steps": LOW_STEPS}
        case "offload":
            return {} if memory.offload_model else {"offload_model": True}


def _refusal(preset: Preset) -> str:
    """Why a preset's engine or layout does not support its settings; empty when it does."""
    if preset.engine != "diffusion":
        return ""
    try:
        Layout.of(preset)
    except BadInput as error:
        return error.message
    return " ".join(unsupported(preset))
