"""What ranks do for the diffusion engine: rank 0 leads a run, the others have a share of its transformer.

Those others import neither diffusers nor transformers, which takes longer than all else until they are there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from avatar.checkpoints.transformer_config import ModelConfig
from avatar.distributed import coordinator
from avatar.distributed.loading import load_share
from avatar.distributed.p2p import Go, Load, MessageChannel
from avatar.distributed.process_groups import Group, join, pieces_of
from avatar.distributed.rendezvous import RankContext
from avatar.model.transformer import StreamingTransformer
from avatar.model.weights.checkpoint import CheckpointFiles
from avatar.pipeline.checkpoint_choice import find_files
from avatar.pipeline.device import DTYPES
from avatar.preset import Preset

if TYPE_CHECKING:
    from avatar.pipeline.pipeline import DiffusionPipeline


def lead(preset: Preset, weights: Path | None, context: RankContext) -> DiffusionPipeline:
    """Rank 0's source of frames."""
    from avatar.distributed.rank0_pipeline import checkpoint_pipeline

    return checkpoint_pipeline(preset, weights, context)


def assist(preset: Preset, weights: Path | None, context: RankContext) -> None:
    """What the other ranks do, as long as rank 0 does. Raises: WeightsMissing."""
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
    """A rank's checkpoint, while it loads; the self-test's is made for that. Raises: WeightsMissing."""
    with tempfile.TemporaryDirectory(prefix="avatar-rank-") as folder:
        yield find_files(preset, weights, Path(folder))


def follow(
    preset: Preset,
    context: RankContext,
    load: Callable[[], tuple[Group, StreamingTransformer | None]],
    encode: Callable[[Tensor], object] | None = None,
) -> None:
    """Do what rank 0 says. load: joins the group and gives this rank's share. encode: see conduct.assist."""
    post, group, share = MessageChannel(), None, None
    while True:
        order = post.receive(0)
        if isinstance(order, Load) and group is None:
            group, share = load()
        elif isinstance(order, Go):
            assert group is not None
            assert share is not None
            dtype = DTYPES[preset.memory.weight_dtype]
            coordinator.assist(group, share, dtype, pieces_of(preset, context.device), encode)
