"""How a layout divides a run's memory among GPUs."""

from __future__ import annotations

from dataclasses import replace

from avatar.checkpoints.transformer_config import ModelConfig
from avatar.planning.estimates import RankShare
from avatar.planning.layout import Layout, Role
from avatar.preset import Preset
from avatar.settings import TextPlace


def shares_of(preset: Preset, model: ModelConfig) -> list[RankShare]:
    """Each rank's share, rank 0's first. Raises: BadInput for an impossible layout."""
    layout = Layout.of(preset).for_model(model)
    place = preset.memory.text_encoder
    return [
        replace(_share(layout, rank), text=_text(place, layout, rank)) for rank in range(layout.world_size)
    ]


def _share(layout: Layout, rank: int) -> RankShare:
    role, sharded = layout.role_of(rank), layout.kind == "fsdp"
    if role is None:
        return RankShare(range(0), 0, 0)
    share = RankShare(role.layers, len(role.steps), role.num_rings, has_sides=rank == 0)
    return replace(
        share,
        heads=len(role.heads) / layout.config.num_heads,
        weights=1 / layout.group_size if sharded else 1.0,
        num_anchors=2 if layout.kind in ("layers", "timesteps") else 1,
        num_blocks=1 + _lag(layout, role.steps[-1]) - _lag(layout, role.steps[0]),
        decodes_meanwhile=rank == 0 and layout.world_size > 1,
        num_communicators=_num_communicators(layout, role),
    )


def _lag(layout: Layout, step: int) -> int:
    return layout.lag_of(step, layout.num_steps)


def _num_communicators(layout: Layout, role: Role) -> int:
    """One per neighbouring stage that tokens pass to or from, plus those of the rank's own group."""
    beside = 0
    if layout.kind == "layers":
        beside = (role.stage > 0) + (role.stage + 1 < layout.num_stages)
    own = 0 if layout.group_size == 1 else 2 if layout.kind == "fsdp" else 1
    return beside + own


def _text(place: TextPlace, layout: Layout, rank: int) -> float:
    """A rank's fraction of the prompt encoder."""
    if place == "sharded":
        return 1 / layout.world_size
    return float(place == "gpu" and rank == 0)
