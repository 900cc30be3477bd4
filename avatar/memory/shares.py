"""How a layout divides a run among GPUs, as far as memory goes."""

from __future__ import annotations

from dataclasses import replace

from avatar.memory.items import Share
from avatar.models.config import ModelConfig
from avatar.parallel.layout import Layout
from avatar.preset import Preset, TextPlace

GATHERED_LAYERS = 2  # fsdp: one at work, one on its way


def shares_of(preset: Preset, model: ModelConfig) -> list[Share]:
    """Each rank's share, rank 0's first. Raises: BadInput for a layout that cannot be."""
    layout = Layout.of(preset).for_model(model)
    place = preset.memory.text_encoder
    return [
        replace(_share(layout, rank), text=_text(place, layout, rank)) for rank in range(layout.world_size)
    ]


def _share(layout: Layout, rank: int) -> Share:
    role, sharded = layout.role_of(rank), layout.kind == "fsdp"
    if role is None:
        return Share(range(0), 0)
    share = Share(role.layers, len(role.steps), has_sides=rank == 0)
    return replace(
        share,
        heads=len(role.heads) / layout.config.num_heads,
        weights=1 / layout.group_size if sharded else 1.0,
        gathered_layers=GATHERED_LAYERS if sharded else 0,
        communicates=layout.group_size > 1 or (layout.kind == "layers" and layout.num_stages > 1),
        num_anchors=2 if layout.kind in ("layers", "timesteps") else 1,
    )


def _text(place: TextPlace, layout: Layout, rank: int) -> float:
    """A rank's part of the prompt encoder."""
    if place == "sharded":
        return 1 / layout.world_size
    return float(place == "gpu" and rank == 0)
