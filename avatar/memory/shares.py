"""How a layout divides a run among GPUs, as far as memory goes."""

from __future__ import annotations

import math
from itertools import pairwise

from avatar.errors import BadInput
from avatar.memory.items import Share
from avatar.models.config import ModelConfig
from avatar.preset import Preset

GATHERED_LAYERS = 2  # fsdp: one at work, one on its way


def shares_of(preset: Preset, model: ModelConfig) -> list[Share]:
    """Each GPU's share, those of the transformer first. Raises: BadInput where there are too many GPUs."""
    parallel, steps = preset.parallel, preset.generation.sample_steps
    count, is_alone = parallel.num_gpus_dit, parallel.num_gpus_dit == 1 and not parallel.decode_gpu
    head_ranks = parallel.ulysses_size
    if parallel.layout == "ulysses" and head_ranks == 1:
        head_ranks = count
    groups = max(1, count // head_ranks)
    heads = math.ceil(model.num_heads / head_ranks) / model.num_heads
    all_layers = range(model.num_layers)
    match parallel.layout:
        case "layers":
            parts = [(layers, steps) for layers in divided(all_layers, groups, "layers")]
        case "timesteps":
            parts = [(all_layers, len(part)) for part in divided(range(steps), groups, "steps")]
        case _:
            parts = [(all_layers, steps)] * groups
    is_sharded, in_turns = parallel.layout == "fsdp", parallel.layout in ("layers", "timesteps")
    shares = [
        Share(
            layers,
            num_steps,
            heads=heads,
            weights=1 / count if is_sharded else 1.0,
            gathered_layers=GATHERED_LAYERS if is_sharded else 0,
            num_anchors=2 if in_turns else 1,
            has_sides=not parallel.decode_gpu and rank == count - 1,
            is_alone=is_alone,
        )
        for rank, (layers, num_steps) in enumerate(part for part in parts for _ in range(head_ranks))
    ]
    if parallel.decode_gpu:
        shares.append(Share(range(0), 0, is_alone=False))
    return shares


def divided(whole: range, num_parts: int, what: str) -> list[range]:
    """A range in parts as even as can be, the larger first. Raises: BadInput for more parts than entries."""
    if num_parts > len(whole):
        raise BadInput(f"{num_parts} GPUs cannot share {len(whole)} {what}.", f"Take {len(whole)} or fewer.")
    edges = [math.ceil(len(whole) * part / num_parts) for part in range(num_parts + 1)]
    return [whole[start:end] for start, end in pairwise(edges)]
