"""Roles of ranks that need no checkpoint: weights are random, of the model's own sizes."""

from __future__ import annotations

from pathlib import Path

import torch

from avatar.bench.random_parts import random_parts
from avatar.diffusion.parts import DTYPES, Check
from avatar.diffusion.source import DiffusionSource
from avatar.models import tiny
from avatar.models.config import ModelConfig
from avatar.models.transformer import StreamingTransformer
from avatar.parallel.group import Group
from avatar.parallel.loading import random_share
from avatar.parallel.roles import LeadingSource, follow, join
from avatar.parallel.seat import Seat
from avatar.preset import Preset


def lead(preset: Preset, weights: Path | None, seat: Seat) -> DiffusionSource:
    """Rank 0 of several."""
    return RandomLeadingSource(preset, seat)


def assist(preset: Preset, weights: Path | None, seat: Seat) -> None:
    """The other ranks."""

    def load() -> tuple[Group, StreamingTransformer | None]:
        group = join(preset, config_of(preset), seat)
        return group, random_share(
            group.layout.config, preset.memory, group, DTYPES[preset.memory.weight_dtype]
        )

    follow(preset, seat, load)


class RandomLeadingSource(LeadingSource):
    """LeadingSource without a checkpoint."""

    def __init__(self, preset: Preset, seat: Seat) -> None:
        super().__init__(
            preset, None, seat, lambda request, placement, check: random_parts(preset, placement)
        )
        self._keeps = True

    def config(self) -> ModelConfig:
        """See LeadingSource."""
        return config_of(self.preset)

    def share(self, group: Group, dtype: torch.dtype, check: Check) -> StreamingTransformer | None:
        """See LeadingSource."""
        return random_share(group.layout.config, self.preset.memory, group, dtype, check)


def config_of(preset: Preset) -> ModelConfig:
    """The published model's, or the self-test's."""
    return tiny.CONFIG if preset.requires.weights == "tiny" else ModelConfig()
