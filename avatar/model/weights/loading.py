"""Load the transformer's weights: check all names and shapes first, then place tensor by tensor.

Host memory holds at most one tensor more than is placed there; shards are mapped, never read whole.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from accelerate.utils import set_module_tensor_to_device
from torch import Tensor, nn

from avatar.checkpoints.lora_files import UserLora
from avatar.checkpoints.transformer_config import ModelConfig
from avatar.errors import WeightsMissing
from avatar.model.transformer import StreamingTransformer, held_dtype
from avatar.model.weights.checkpoint import CheckpointFiles
from avatar.model.weights.lora import merge_all, open_any_lora
from avatar.model.weights.tensor_files import (
    FETCH_AGAIN,
    Shapes,
    require_match,
)
from avatar.model.weights.weight_formats import StoredTensors

logger = logging.getLogger(__name__)

Place = Callable[[str, Tensor], nn.Parameter | None]
"""From a tensor's name and merged value on the device, the parameter to install; None: the usual one."""

Check = Callable[[], None]
"""Called between two tensors while a model loads; raises Cancelled when the run was stopped."""

Settle = Callable[[str, Tensor], Tensor]
"""From a tensor's name and its value as it is to stay, the same value where it is to stay."""


def go_on() -> None:
    """The Check of a load that cannot be cancelled."""


def stay(name: str, tensor: Tensor) -> Tensor:
    """The default Settle: every tensor stays on its device."""
    return tensor


def open_transformer(files: CheckpointFiles) -> StreamingTransformer:
    """The checkpoint's transformer on the meta device: every shape, no memory. Raises: WeightsMissing."""
    with torch.device("meta"):
        return StreamingTransformer(ModelConfig.load(files.config)).eval().requires_grad_(False)


def load_transformer(
    files: CheckpointFiles,
    device: torch.device | str,
    dtype: torch.dtype,
    *,
    select: Callable[[str], bool] = lambda name: True,
    place: Place = lambda name, tensor: None,
    settle: Settle = stay,
) -> StreamingTransformer:
    """Build the transformer on a device, with the LoRAs merged.

    select: whether to load a tensor, by name; the others stay on the meta device (another stage has them).
    place: may quantise a tensor as it is read. settle: may move it to another device, so that the load device
    never holds more than one tensor that is not kept there.
    Raises: WeightsMissing, before any tensor is read, when files and model differ in any name or shape.
    """
    model = open_transformer(files)
    adapters: list[Path | UserLora] = [files.lora, *files.loras]
    load_weights(model, files.shards, adapters, device, dtype, select=select, place=place, settle=settle)
    return model


def load_weights(
    model: nn.Module,
    shards: Sequence[Path],
    loras: Sequence[Path | UserLora],
    device: torch.device | str,
    dtype: torch.dtype,
    *,
    select: Callable[[str], bool] = lambda name: True,
    place: Place = lambda name, tensor: None,
    settle: Settle = stay,
    widen: bool = True,
) -> None:
    """Fill a model on the meta device from safetensors shards, or a single file; see load_transformer.

    loras: merged in this order, the published one by its path. widen: see StoredTensors.
    """
    expected: Shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    held = _held_by(shards, widen)
    require_match(
        "The transformer's checkpoint",
        expected,
        {name: shape for tensors in held.values() for name, shape in tensors.shapes.items()},
    )
    with ExitStack() as stack:
        adapters = [stack.enter_context(open_any_lora(lora, expected)) for lora in loras]
        for shard, tensors in held.items():
            logger.info("loading %s", shard.name)
            for name in filter(select, tensors):
                tensor = merge_all(adapters, name, tensors.read(name, device))
                kept = _kept(place(name, tensor), tensor, held_dtype(name, dtype))
                install(model, name, settle(name, kept))
            tensors.close()


def _held_by(shards: Sequence[Path], widen: bool) -> dict[Path, StoredTensors]:
    """Each shard's tensors, from its header. Raises: WeightsMissing for a tensor that is in two shards."""
    held = {shard: StoredTensors(shard, widen) for shard in shards}
    seen: dict[str, Path] = {}
    for shard, tensors in held.items():
        for name in tensors:
            if name in seen:
                raise WeightsMissing(f"{name} is in both {seen[name].name} and {shard.name}.", FETCH_AGAIN)
            seen[name] = shard
    return held


def _kept(placed: nn.Parameter | None, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The result of place, or, if None, the tensor in the given dtype."""
    return tensor.to(dtype) if placed is None else placed.data


def install(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Replace a module's parameter or buffer by a tensor of the same shape, keeping its dtype and device.

    By default, accelerate would cast it to the old dtype and empty CUDA's cache after each tensor.
    """
    set_module_tensor_to_device(
        module, name, tensor.device, value=tensor, dtype=tensor.dtype, clear_cache=False
    )
