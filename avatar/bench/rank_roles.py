"""Roles of ranks that are timed: with a checkpoint or random weights, as much as a smaller card holds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avatar.bench.measure import take_no_more
from avatar.bench.options import MEASURED, BenchOptions
from avatar.bench.random_parts import random_parts
from avatar.distributed import roles
from avatar.distributed.fsdp import Gathering
from avatar.distributed.init import RankContext
from avatar.distributed.loading import random_share
from avatar.distributed.process_groups import Group, join
from avatar.distributed.rank0 import Rank0Source
from avatar.distributed.roles import follow
from avatar.events import Notice
from avatar.geometry import Size
from avatar.model.transformer import StreamingTransformer
from avatar.model.weights import tiny
from avatar.model.weights.loading import Check
from avatar.pipeline.components import Components
from avatar.pipeline.decode import StreamingDecoder
from avatar.pipeline.denoise import Block, Conditions, Denoiser
from avatar.pipeline.device import DTYPES
from avatar.pipeline.pipeline import DiffusionPipeline, MakeParts
from avatar.planning.per_rank import shares_of
from avatar.planning.transformer_config import ModelConfig
from avatar.preset import Preset
from avatar.request import Request
from avatar.runtime.engine import FrameItem


def lead(preset: Preset, weights: Path | None, seat: RankContext) -> DiffusionPipeline:
    """Rank 0 of several. weights: where the Terms are."""
    terms = accept(preset, weights, seat)
    if terms.random:
        return RandomLeadingSource(preset, seat, terms)
    return TimedLeadingSource(preset, _folder(terms), seat)


def assist(preset: Preset, weights: Path | None, seat: RankContext) -> None:
    """The other ranks."""
    terms = accept(preset, weights, seat)
    if not terms.random:
        return roles.assist(preset, _folder(terms), seat)

    def load() -> tuple[Group, StreamingTransformer | None]:
        group = join(preset, config_of(preset, terms), seat)
        dtype = DTYPES[preset.memory.weight_dtype]
        share = random_share(group.layout.config, preset.memory, group, dtype)
        unshard_peak_bytes(group, share)
        return group, share

    follow(preset, seat, load)


def accept(preset: Preset, path: Path | None, seat: RankContext) -> BenchOptions:
    """The terms, this rank's memory being limited by them."""
    terms = BenchOptions.read(path)
    share = shares_of(preset, config_of(preset, terms))[seat.rank]
    most = terms.tensor_bytes(share.num_communicators + (0 < share.text < 1))
    if most is not None:
        take_no_more(seat.device, most)
    return terms


def config_of(preset: Preset, terms: BenchOptions) -> ModelConfig:
    """What is timed of the published model, or of the self-test's."""
    return terms.config_of(tiny.CONFIG if preset.requires.weights == "tiny" else ModelConfig())


def unshard_peak_bytes(group: Group, share: StreamingTransformer | None) -> int | None:
    """What gathering the layers one after another takes beside the shards; None without a GPU, or shards.

    Every rank of the group calls it, once its share is loaded.
    """
    if group.gathering is None or share is None:
        return None
    on_gpu = group.device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(group.device)
        torch.cuda.reset_peak_memory_stats(group.device)
    resting = torch.cuda.memory_allocated(group.device) if on_gpu else 0
    gathering = Gathering(share, group.meter)
    for index in range(share.config.num_layers):
        with gathering.visit(index):
            pass
    gathering.let_go()
    if not on_gpu:
        return None
    torch.cuda.synchronize(group.device)
    return torch.cuda.max_memory_allocated(group.device) - resting


class TimedLeadingSource(Rank0Source):
    """Rank0Source that notes when the parts of a run's first frame are there; told at its end.

    Moments: seconds by the machine's monotonic clock, which all its processes share.
    """

    def __init__(
        self, preset: Preset, weights: Path | None, seat: RankContext, make_parts: MakeParts | None = None
    ) -> None:
        super().__init__(preset, weights, seat, make_parts)
        self.moments: dict[str, float] = {}
        self.unshard_bytes: int | None = None

    def frames(self, request: Request, cancelled: Callable[[], bool]) -> Iterator[FrameItem]:
        """See FrameSource."""
        self.moments = {}
        self.note("taken")
        yield from super().frames(request, cancelled)
        values = {"moments": self.moments, "unshard_peak_bytes": self.unshard_bytes}
        yield Notice(MEASURED, "What rank 0 measured.", values=values)

    def note(self, moment: str) -> None:
        """It is now, unless it was before in this run."""
        self.moments.setdefault(moment, time.monotonic())

    def make_denoiser(self, preset: Preset, parts: Components, size: Size) -> Denoiser:
        """See DiffusionPipeline."""
        self.note("conditions")
        return NotingDenoiser(super().make_denoiser(preset, parts, size), self.note)

    def make_decoder(self, parts: Components) -> StreamingDecoder:
        """See DiffusionPipeline."""
        return NotingDecoder(parts.vae, compile=parts.device.type == "cuda", note=self.note)

    def decoding(self) -> AbstractContextManager[None]:
        """See DiffusionPipeline."""
        self.note("denoised")
        return super().decoding()


class RandomLeadingSource(TimedLeadingSource):
    """The same without a checkpoint."""

    def __init__(self, preset: Preset, seat: RankContext, terms: BenchOptions) -> None:
        self.terms = terms

        def make_parts(request: Request, placement: Any, check: Check) -> Components:
            return random_parts(preset, placement)

        super().__init__(preset, None, seat, make_parts)
        self._keeps = True

    def config(self) -> ModelConfig:
        """See Rank0Source."""
        return config_of(self.preset, self.terms)

    def share(self, group: Group, dtype: torch.dtype, check: Check) -> StreamingTransformer | None:
        """See Rank0Source."""
        share = random_share(group.layout.config, self.preset.memory, group, dtype, check)
        self.unshard_bytes = unshard_peak_bytes(group, share)
        return share


class NotingDenoiser:
    """A Denoiser's own work, and when its first block's speech was there and it began."""

    def __init__(self, denoiser: Denoiser, note: Callable[[str], None]) -> None:
        self._denoiser, self._note = denoiser, note
        self.geometry, self.schedule = denoiser.geometry, denoiser.schedule
        self.num_in_flight = denoiser.num_in_flight

    def begin(self, conditions: Conditions) -> None:
        """See Denoiser."""
        self._denoiser.begin(conditions)
        self._note("begun")

    def refresh(self, reference: Tensor) -> None:
        """See Denoiser."""
        self._denoiser.refresh(reference)

    def submit(self, block: Block) -> None:
        """See Denoiser."""
        self._denoiser.submit(block)
        self._note("speech")

    def collect(self, check: Callable[[], None] = lambda: None) -> Tensor:
        """See Denoiser."""
        self._note("primed")
        return self._denoiser.collect(check)


class NotingDecoder(StreamingDecoder):
    """A StreamingDecoder that notes when its first frames are there."""

    def __init__(self, *arguments: Any, note: Callable[[str], None], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._note, self._noted = note, False

    def decode(self, latents: Tensor) -> Tensor:
        """See StreamingDecoder. The device is waited for once."""
        frames = super().decode(latents)
        if not self._noted:
            self._noted = True
            if frames.is_cuda:
                torch.cuda.current_stream(frames.device).synchronize()
            self._note("decoded")
        return frames


def _folder(terms: BenchOptions) -> Path | None:
    return None if terms.checkpoint is None else Path(terms.checkpoint)
