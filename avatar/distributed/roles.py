"""Roles of ranks in the diffusion engine: rank 0 leads a run, the others run a share of its transformer.

The others import neither diffusers nor transformers, which would take most of their start-up time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from avatar.checkpoints.locations import cache_folder
from avatar.checkpoints.transformer_config import ModelConfig
from avatar.distributed import coordinator
from avatar.distributed.loading import load_share
from avatar.distributed.p2p import LoadShare, MessageChannel, StartWork
from avatar.distributed.process_groups import Group, join, pieces_of
from avatar.distributed.rendezvous import RankContext
from avatar.model.device_checks import remember_trials
from avatar.model.transformer import StreamingTransformer
from avatar.model.weights.checkpoint import CheckpointFiles
from avatar.pipeline.checkpoint_choice import find_files
from avatar.pipeline.device import DTYPES
from avatar.preset import Preset

if TYPE_CHECKING:
    from avatar.pipeline.pipeline import DiffusionPipeline


def lead(preset: Preset, weights: Path | None, context: RankContext) -> DiffusionPipeline:
    """Rank 0's source of frames."""
    remember_trials(cache_folder())
    from avatar.distributed.rank0_pipeline import checkpoint_pipeline

    pipeline = checkpoint_pipeline(preset, weights, context)
    pipeline.warm(context.device)
    return pipeline


def assist(preset: Preset, weights: Path | None, context: RankContext) -> None:
    """The main loop of the other ranks, as long as rank 0 runs. Raises: WeightsMissing."""
    remember_trials(cache_folder())
    dtype = DTYPES[preset.memory.weight_dtype]

    def load() -> tuple[Group, StreamingTransformer | None]:
        with checkpoint(preset, weights) as files:
            group = join(preset, ModelConfig.load(files.config), context)
            return group, load_share(files, preset.memory, group, dtype)

    def encode(ids: Tensor) -> None:
        from avatar.distributed.fsdp_text import encode_together
        from avatar.model.text_encoder import TextWeights

        with checkpoint(preset, weights) as files:
            encode_together(TextWeights.open(files.text_encoder), ids, dtype, context)

    follow(preset, context, load, encode)


@contextmanager
def checkpoint(preset: Preset, weights: Path | None) -> Iterator[CheckpointFiles]:
    """Context with a rank's checkpoint; builds the self-test's. Raises: WeightsMissing."""
    with tempfile.TemporaryDirectory(prefix="avatar-rank-") as folder:
        yield find_files(preset, weights, Path(folder))


def follow(
    preset: Preset,
    context: RankContext,
    load: Callable[[], tuple[Group, StreamingTransformer | None]],
    encode: Callable[[Tensor], object] | None = None,
) -> None:
    """Follow rank 0's orders. load: joins the group and loads this rank's share.

    encode: see coordinator.assist.
    """
    post, group, share = MessageChannel(), None, None
    while True:
        order = post.receive(0)
        if isinstance(order, LoadShare) and group is None:
            group, share = load()
        elif isinstance(order, StartWork):
            assert group is not None
            assert share is not None
            dtype = DTYPES[preset.memory.weight_dtype]
            coordinator.assist(group, share, dtype, pieces_of(preset, context.device), encode)
