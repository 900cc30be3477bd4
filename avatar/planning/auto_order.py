"""The order in which `auto` prefers presets: the one place that says what is better."""

from __future__ import annotations

from collections.abc import Sequence

from avatar.geometry import Size
from avatar.hardware.inventory import GIB, Gpu
from avatar.planning.plan import Plan
from avatar.preset import Preset

FULL_AREA = 688 * 368  # the smallest that the public code's guide calls its own


def preference(preset: Preset, plan: Plan, gpus: Sequence[Gpu]) -> tuple[object, ...]:
    """What presets that fit are sorted by, the best first:

    1. the model before the preview;
    2. full size (688*368 or more) before smaller ones, of which the larger come first;
    3. faster before slower: what holds everything on the GPUs before what waits on the host,
    4. presets for cards of this size before those that are written for larger ones,
    5. more GPUs, each of which does a part, before fewer;
    6. of presets for smaller cards, those for the largest;
    7. the larger picture, then the more frames and steps; then the preset's own rank.
    """
    made, area = preset.generation, Size.parse(preset.generation.size).area
    smallest = min((gpu.total_bytes or 0 for gpu in gpus), default=0)
    return (
        preset.engine == "preview",
        area < FULL_AREA,
        -area if area < FULL_AREA else 0,
        plan.placement.offloads,
        preset.requires.vram_gib * GIB > smallest,
        -preset.num_gpus,
        -preset.requires.vram_gib,
        -area,
        -made.infer_frames * made.sample_steps,
        -preset.rank,
        preset.name,
    )
