"""What ranks do for the diffusion engine: rank 0 leads a run, the others have a share of its transformer.

Those others import neither diffusers nor transformers, which takes longer than all else until they are there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from avatar.diffusion.device import DTYPES
from avatar.diffusion.files import find_files
from avatar.diffusion.layer_stack import EAGER, Pieces
from avatar.models.checkpoint import CheckpointFiles
from avatar.models.config import ModelConfig
from avatar.models.transformer import StreamingTransformer
from avatar.parallel import conduct
from avatar.parallel.group import Group
from avatar.parallel.layout import Layout
from avatar.parallel.loading import load_share
from avatar.parallel.messages import Go, Load, Post
from avatar.parallel.seat import Seat
from avatar.preset import Preset

if TYPE_CHECKING:
    from avatar.diffusion.source import DiffusionSource


def lead(preset: Preset, weights: Path | None, seat: Seat) -> DiffusionSource:
    """Rank 0's source: with one rank the plain one."""
    from avatar.parallel.leading import LeadingSource, LoneSource

    if seat.world_size > 1:
        return LeadingSource(preset, weights, seat)
    return LoneSource(preset, weights, seat)


def assist(preset: Preset, weights: Path | None, seat: Seat) -> None:
    """What the other ranks do, as long as rank 0 does. Raises: WeightsMissing."""
    dtype = DTYPES[preset.memory.weight_dtype]

    def load() -> tuple[Group, StreamingTransformer | None]:
        with checkpoint(preset, weights) as files:
            group = join(preset, ModelConfig.load(files.config), seat)
            return group, load_share(files, preset.memory, group, dtype)

    def encode(ids: Tensor) -> None:
        from avatar.models.text_encoder import TextWeights
        from avatar.parallel.text import encode_together

        with checkpoint(preset, weights) as files:
            encode_together(TextWeights.open(files.text_encoder), ids, dtype, seat)

    follow(preset, seat, load, encode)


@contextmanager
def checkpoint(preset: Preset, weights: Path | None) -> Iterator[CheckpointFiles]:
    """A rank's checkpoint, while it loads; the self-test's is made for that. Raises: WeightsMissing."""
    with tempfile.TemporaryDirectory(prefix="avatar-rank-") as folder:
        yield find_files(preset, weights, Path(folder))


def follow(
    preset: Preset,
    seat: Seat,
    load: Callable[[], tuple[Group, StreamingTransformer | None]],
    encode: Callable[[Tensor], object] | None = None,
) -> None:
    """Do what rank 0 says. load: joins the group and gives this rank's share. encode: see conduct.assist."""
    post, group, share = Post(), None, None
    while True:
        order = post.receive(0)
        if isinstance(order, Load) and group is None:
            group, share = load()
        elif isinstance(order, Go):
            assert group is not None
            assert share is not None
            dtype = DTYPES[preset.memory.weight_dtype]
            conduct.assist(group, share, dtype, pieces_of(preset, seat.device), encode)


def pieces_of(preset: Preset, device: torch.device) -> Pieces:
    """A rank's code between attentions; the self-test's toy model needs no graphs."""
    return EAGER if preset.requires.weights == "tiny" else Pieces.on(device)


def join(preset: Preset, config: ModelConfig, seat: Seat) -> Group:
    """Meet the ranks that this one works with; all of them call it."""
    layout = Layout.of(preset).for_model(config)
    seat.role = layout.describe(seat.rank)
    return Group.join(layout, seat.rank, seat.device, seat.meter, seat.fail)
