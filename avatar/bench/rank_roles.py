"""Roles of benchmarked ranks: with a checkpoint or random weights, and a memory limit if wanted."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from avatar.bench.measure import take_no_more
from avatar.bench.random_parts import random_parts
from avatar.bench.rank_options import MEASURED, BenchOptions
from avatar.checkpoints.transformer_config import ModelConfig
from avatar.distributed import roles
from avatar.distributed.fsdp import LayerGatherer
from avatar.distributed.loading import random_share
from avatar.distributed.process_groups import Group, join
from avatar.distributed.rank0_pipeline import Rank0Meter, RankDenoising, checkpoint_pipeline
from avatar.distributed.rank_meter import RankMeter
from avatar.distributed.rendezvous import RankContext
from avatar.distributed.roles import follow
from avatar.events import Notice
from avatar.model.transformer import StreamingTransformer
from avatar.model.weights import tiny
from avatar.model.weights.loading import Check, go_on
from avatar.pipeline.device import DTYPES
from avatar.pipeline.model_loading import MadeModels
from avatar.pipeline.pipeline import DiffusionPipeline
from avatar.planning.per_rank import shares_of
from avatar.preset import Preset


def lead(preset: Preset, weights: Path | None, context: RankContext) -> DiffusionPipeline:
    """Rank 0 of several. weights: path of the BenchOptions file."""
    terms = accept(preset, weights, context)
    observer = FirstFrame(context.meter)
    if not terms.random:
        return checkpoint_pipeline(preset, _folder(terms), context, observer)
    models = MadeModels(lambda _, placement, check: random_parts(preset, placement, terms.prompt_tokens))
    denoising = RankDenoising(preset, None, context, RandomShares(preset, terms, observer))
    return DiffusionPipeline(preset, models=models, denoising=denoising, observer=observer)


def assist(preset: Preset, weights: Path | None, context: RankContext) -> None:
    """The main loop of the other ranks."""
    terms = accept(preset, weights, context)
    if not terms.random:
        return roles.assist(preset, _folder(terms), context)

    def load() -> tuple[Group, StreamingTransformer | None]:
        shares = RandomShares(preset, terms, FirstFrame(context.meter))
        group = join(preset, shares.config(), context)
        return group, shares.load(group, DTYPES[preset.memory.weight_dtype])

    follow(preset, context, load)


def accept(preset: Preset, path: Path | None, context: RankContext) -> BenchOptions:
    """Read the options, and limit this rank's memory accordingly."""
    terms = BenchOptions.read(path)
    share = shares_of(preset, config_of(preset, terms))[context.rank]
    most = terms.tensor_bytes(share.num_communicators + (0 < share.text < 1))
    if most is not None:
        take_no_more(context.device, most)
    return terms


def config_of(preset: Preset, terms: BenchOptions) -> ModelConfig:
    """The config to time, of the published model or the self-test's."""
    return terms.config_of(tiny.CONFIG if preset.requires.weights == "tiny" else ModelConfig())


def unshard_peak_bytes(group: Group, share: StreamingTransformer | None) -> int | None:
    """Peak memory, beyond the shards, of gathering the layers one by one; None without a GPU or shards.

    Every rank of the group calls it, once its share is loaded.
    """
    if group.gathering is None or share is None:
        return None
    on_gpu = group.device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(group.device)
        torch.cuda.reset_peak_memory_stats(group.device)
    resting = torch.cuda.memory_allocated(group.device) if on_gpu else 0
    gathering = LayerGatherer(share, group.meter)
    for index in range(share.config.num_layers):
        with gathering.visit(index):
            pass
    gathering.let_go()
    if not on_gpu:
        return None
    torch.cuda.synchronize(group.device)
    return torch.cuda.max_memory_allocated(group.device) - resting


class FirstFrame(Rank0Meter):
    """Records when each stage of a run's first frame is done, and reports that at the run's end.

    moments: seconds on the monotonic clock, which all processes of a machine share.
    """

    def __init__(self, meter: RankMeter) -> None:
        super().__init__(meter)
        self.moments: dict[str, float] = {}
        self.unshard_bytes: int | None = None

    def note(self, moment: str) -> None:
        """Record the time of a moment, the first time in this run."""
        self.moments.setdefault(moment, time.monotonic())

    def run_begins(self) -> None:
        """See Observer."""
        self.moments = {}
        self.note("taken")

    def encoded(self) -> None:
        """See Observer."""
        self.note("conditions")

    @contextmanager
    def prefilling(self) -> Iterator[None]:
        """See Observer."""
        yield
        self.note("begun")

    def submitted(self) -> None:
        """See Observer."""
        self.note("speech")

    def collecting(self) -> None:
        """See Observer. By now the decoder has been primed."""
        self.note("primed")

    def decoding(self) -> AbstractContextManager[object]:
        """See Observer."""
        self.note("denoised")
        return super().decoding()

    def decoded(self, frames: Tensor) -> None:
        """See Observer. Waits for the device once per run, at its first frames."""
        if "decoded" not in self.moments:
            if frames.is_cuda:
                torch.cuda.current_stream(frames.device).synchronize()
            self.note("decoded")

    def notices(self) -> Iterable[Notice]:
        """See Observer."""
        values = {"moments": self.moments, "unshard_peak_bytes": self.unshard_bytes}
        return [Notice(MEASURED, "What rank 0 measured.", values=values)]


@dataclass(frozen=True)
class RandomShares:
    """Shares with random weights; also measures the memory that gathering them takes."""

    preset: Preset
    terms: BenchOptions
    observer: FirstFrame

    def config(self) -> ModelConfig:
        """See Shares."""
        return config_of(self.preset, self.terms)

    def load(self, group: Group, dtype: torch.dtype, check: Check = go_on) -> StreamingTransformer | None:
        """See Shares."""
        share = random_share(group.layout.config, self.preset.memory, group, dtype, check)
        self.observer.unshard_bytes = unshard_peak_bytes(group, share)
        return share


def _folder(terms: BenchOptions) -> Path | None:
    return None if terms.checkpoint is None else Path(terms.checkpoint)
