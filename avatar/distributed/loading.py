"""Load only a rank's own share of the transformer's tensors, so that no rank ever holds the others'."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from avatar.checkpoints.locations import cache_folder
from avatar.checkpoints.transformer_config import ModelConfig
from avatar.distributed.fsdp import Fill, layer_of, shard_layers
from avatar.distributed.process_groups import Group
from avatar.model.linear_8bit import Quantiser
from avatar.model.transformer import StreamingTransformer
from avatar.model.weights.checkpoint import CheckpointFiles
from avatar.model.weights.loading import Check, go_on, load_transformer
from avatar.model.weights.random_weights import random_transformer
from avatar.model.weights.weight_cache import load_quantised
from avatar.pipeline.device import quantised_dtype
from avatar.planning.layout import Role
from avatar.settings import Memory


def load_share(
    files: CheckpointFiles, memory: Memory, group: Group, dtype: torch.dtype, check: Check = go_on
) -> StreamingTransformer | None:
    """This rank's share, fused; None for a rank that only decodes. Ranks may load at different times.

    check: called between tensors. Raises: WeightsMissing, whatever check raises.
    """

    def checked() -> None:
        group.meter.tick()
        check()

    def fill(select: Callable[[str], bool]) -> StreamingTransformer:
        if (format := quantised_dtype(memory)) is not None:
            return load_quantised(
                files, group.device, dtype, format, folder=cache_folder(), select=select, check=checked
            )
        return load_transformer(files, group.device, dtype, select=select, place=lambda *_: checked())

    return share(fill, group)


def random_share(
    config: ModelConfig, memory: Memory, group: Group, dtype: torch.dtype, check: Check = go_on
) -> StreamingTransformer | None:
    """As load_share, but with random weights, for timing without a checkpoint."""

    def fill(select: Callable[[str], bool]) -> StreamingTransformer:
        format = quantised_dtype(memory)
        quantiser = None if format is None else Quantiser(format)

        def place(name: str, tensor: Tensor) -> nn.Parameter | None:
            group.meter.tick()
            check()
            return None if quantiser is None else quantiser.place(name, tensor)

        model = random_transformer(config, group.device, dtype, select=select, place=place)
        if quantiser is not None:
            quantiser.install(model)
        return model

    return share(fill, group)


def share(fill: Fill, group: Group) -> StreamingTransformer | None:
    """Call fill for the tensors that this rank's role needs, and fuse the result."""
    role = group.layout.role_of(group.rank)
    if role is None:
        return None
    if group.gathering is not None:
        return shard_layers(fill, group)
    model = fill(partial(is_needed, role, group.layout.config))
    for index in role.layers:
        model.layer(index).self_attn.fuse()
        if group.device.type == "cuda":
            torch.cuda.empty_cache()  # nothing allocated later fits the three freed pieces
    return model


def is_needed(role: Role, config: ModelConfig, name: str) -> bool:
    """Whether a role needs a tensor; embeddings belong to the first layer, the head to the last."""
    layer = layer_of(name, config.audio_inject_layers)
    if layer is not None:
        return layer in role.layers
    return (role.layers.stop == config.num_layers) if name.startswith("head.") else role.layers.start == 0
