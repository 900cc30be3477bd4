"""A transformer with random weights, generated directly on its device, for timing without a checkpoint.

Its output is noise, but all values stay finite and near 1, as in a trained model.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from avatar.checkpoints.transformer_config import ModelConfig
from avatar.model.transformer import StreamingTransformer, held_dtype
from avatar.model.weights.loading import Place, Settle, install, stay

AUDIO_MIXTURE = 0.01  # initial value, in training, of the weights of the audio encoder's layer mixture


def random_transformer(
    config: ModelConfig,
    device: torch.device | str,
    dtype: torch.dtype,
    *,
    seed: int = 0,
    select: Callable[[str], bool] = lambda name: True,
    place: Place = lambda name, tensor: None,
    settle: Settle = stay,
) -> StreamingTransformer:
    """Build the transformer, holding at most one tensor more than is placed.

    select, place, settle: see model.weights.loading.load_transformer.
    """
    with torch.device("meta"):
        model = StreamingTransformer(config).eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(seed)
    for name in filter(select, model.state_dict()):
        module_name, _, leaf = name.rpartition(".")
        module = model.get_submodule(module_name)
        tensor = random_tensor(module, leaf, device, held_dtype(name, dtype), generator)
        placed = place(name, tensor)
        tensor = settle(name, tensor if placed is None else placed.data)
        del placed  # so that a tensor moved elsewhere is freed before the next one is generated
        install(module, leaf, tensor)
    return model


def random_tensor(
    module: nn.Module, leaf: str, device: torch.device | str, dtype: torch.dtype, generator: torch.Generator
) -> Tensor:
    """A random value for a module's parameter: neutral for norms, else scaled by its fan-in."""
    shape = module.get_parameter(leaf).shape
    tensor = torch.empty(shape, device=device, dtype=dtype)
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return tensor.fill_(1.0 if leaf == "weight" else 0.0)
    if leaf == "bias":
        return tensor.zero_()
    if leaf == "weights":
        return tensor.fill_(AUDIO_MIXTURE)
    fan_in = math.prod(shape[1:]) if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv3d) else shape[-1]
    return tensor.normal_(std=fan_in**-0.5, generator=generator)
