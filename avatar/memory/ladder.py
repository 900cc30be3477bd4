"""The out-of-memory ladder as a pure function: which rung comes next, and the preset that stands on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from avatar.abilities import REFUSES
from avatar.geometry import Size
from avatar.preset import Preset, Rung

SETTINGS: dict[Rung, str] = {
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
    """The preset's rungs in its own order, each on top of those before.

    A rung that it stands on already is skipped, and so is one that its engine or layout does not have.
    """
    for rung in preset.fallback.order:
        change = _change(rung, preset)
        if change and not change.keys() & REFUSES[preset.engine].keys():
            preset = preset.with_settings(**change)
            yield rung, preset


def value(preset: Preset, rung: Rung) -> str:
    """Where a preset stands as to a rung, in words: "32"."""
    name = SETTINGS[rung]
    return str(getattr(preset.memory if hasattr(preset.memory, name) else preset.generation, name))


def describe(rung: Rung, preset: Preset) -> str:
    """A rung taken, as its setting: "infer_frames 32"."""
    return f"{SETTINGS[rung]} {value(preset, rung)}"


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
            several = preset.parallel.num_gpus_dit > 1 or preset.parallel.decode_gpu
            return {} if memory.offload_model or several else {"offload_model": True}
