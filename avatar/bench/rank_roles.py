"""Roles of ranks that need no checkpoint: weights are random, of the model's own sizes."""

from __future__ import annotations

from pathlib import Path

import torch

from avatar.bench.random_parts import random_parts
from avatar.diffusion.parts import DTYPES, Check, Parts
from avatar.diffusion.source import DiffusionSource
from avatar.models import tiny
from avatar.models.config import ModelConfig
from avatar.models.transformer import StreamingTransformer
from avatar.parallel.group import Group
from avatar.parallel.loading import random_share
from avatar.parallel.roles import LeadingSource, LoneSource, follow, join
from avatar.parallel.seat import Seat
from avatar.preset import Preset
from avatar.request import Request


def lead(preset: Preset, weights: Path | None, seat: Seat) -> DiffusionSource:
    """Rank 0 of several, or the only one."""
    return (
        RandomLeadingSource(preset, weights, seat) if seat.world_size > 1 else RandomLoneSource(preset, seat)
    )


def assist(preset: Preset, weights: Path | None, seat: Seat) -> None:
    """The other ranks."""

    def load() -> tuple[Group, StreamingTransformer | None]:
        group = join(preset, config_of(preset), seat)
        return group, random_share(
            group.layout.config, preset.memory, group, DTYPES[preset.memory.weight_dtype]
        )

    follow(preset, seat, load)


class RandomLoneSource(LoneSource):
    """LoneSource without a checkpoint."""

    def __init__(self, preset: Preset, seat: Seat) -> None:
        super().__init__(preset, None, seat)
        self._use(random_parts(preset), preset.memory)
        self._keeps = True


class RandomLeadingSource(LeadingSource):
    """LeadingSource without a checkpoint."""

    def _loaded(self, request: Request, check: Check) -> Parts:
        if self._parts is None:
            self._use(random_parts(self.preset), self.preset.memory)
            self._keeps = True
        assert self._parts is not None
        self.prepare(self._parts, check)
        return self._parts

    def config(self) -> ModelConfig:
        """See LeadingSource."""
        return config_of(self.preset)

    def share(self, group: Group, dtype: torch.dtype, check: Check) -> StreamingTransformer | None:
        """See LeadingSource."""
        return random_share(group.layout.config, self.preset.memory, group, dtype, check)


def config_of(preset: Preset) -> ModelConfig:
    """The published model's, or the self-test's."""
    return tiny.CONFIG if preset.requires.weights == "tiny" else ModelConfig()
