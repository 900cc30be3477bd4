"""The order in which `auto` prefers presets; no other module ranks them."""

from __future__ import annotations

from collections.abc import Sequence

from avatar.geometry import Size
from avatar.hardware.inventory import GIB, Gpu
from avatar.planning.plan import Plan
from avatar.preset import Preset

FULL_AREA = 688 * 368  # the smallest size that the public code's guide recommends


def preference(preset: Preset, plan: Plan, gpus: Sequence[Gpu]) -> tuple[object, ...]:
    """Sort key for presets that fit, the best first:

    1. the model before the preview;
    2. full size (688*368 or more) before smaller sizes, and of the smaller ones the larger first;
    3. faster before slower: everything on the GPUs before weights or rings offloaded to the host, and those
       before layers that are kept there as GGUF blocks;
    4. presets for cards with as much memory as these have free before those for larger cards;
    5. more GPUs, which share the work, before fewer;
    6. the preset whose cards are nearest to these: the largest of those for smaller cards, the smallest of
       those for larger ones;
    7. the larger picture, then more frames and steps, then the preset's own rank.
    """
    made, area = preset.generation, Size.parse(preset.generation.size).area
    smallest = min((gpu.usable_bytes or 0 for gpu in gpus), default=0)
    for_larger = preset.requires.vram_gib * GIB > smallest
    return (
        preset.engine == "preview",
        area < FULL_AREA,
        -area if area < FULL_AREA else 0,
        plan.placement.offloads + plan.placement.layers_in_blocks,
        for_larger,
        -preset.num_gpus,
        preset.requires.vram_gib if for_larger else -preset.requires.vram_gib,
        -area,
        -made.infer_frames * made.sample_steps,
        -preset.rank,
        preset.name,
    )
