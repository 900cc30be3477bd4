"""LoRA files: read strictly, and merged tensor by tensor while the base weights load."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avatar.checkpoints.lora_files import UserLora, check_lora
from avatar.checkpoints.lora_keys import Change, read_changes, shapes_of
from avatar.errors import WeightsMissing
from avatar.model.weights.tensor_files import (
    FETCH_AGAIN,
    Shape,
    Shapes,
    open_safetensors,
    require_match,
    safetensors_shapes,
)

ALPHA = 64.0  # the published LoRA's alpha, which its file does not contain
TARGETS = ("q", "k", "v", "o", "ffn.0", "ffn.2")  # every linear layer with such a name has a LoRA pair


class Lora:
    """An adapter for one base model: W + weight · alpha / rank · B·A, in float32.

    Whole tensors replace the base's; differences are added. alpha: for pairs whose alpha is not in the file;
    None means their rank.
    """

    def __init__(
        self, tensors: Any, changes: Mapping[str, Change], alpha: float | None, weight: float = 1.0
    ) -> None:
        self._tensors = tensors
        self._changes = changes
        self._alpha = alpha
        self._weight = weight

    def merge(self, name: str, weight: Tensor) -> Tensor:
        """The base tensor with the adapter merged, in float32; unchanged if the adapter does not cover it."""
        change = self._changes.get(name)
        if change is None:
            return weight
        if change.whole:
            whole = self._read(change.whole, weight)
            weight = whole if self._weight == 1 else torch.lerp(weight.float(), whole.float(), self._weight)
        if change.difference:
            weight = weight.float() + self._weight * self._read(change.difference, weight).float()
        if not change.down:
            return weight
        down, up = (self._read(key, weight).float().flatten(1) for key in (change.down, change.up))
        alpha = self._alpha_of(change, len(down))
        merged = torch.addmm(weight.float().flatten(1), up, down, alpha=self._weight * alpha / len(down))
        return merged.view(weight.shape)

    def _alpha_of(self, change: Change, rank: int) -> float:
        if change.alpha:
            return float(self._tensors.get_tensor(change.alpha).item())
        return rank if self._alpha is None else self._alpha

    def _read(self, key: str, like: Tensor) -> Tensor:
        tensor: Tensor = self._tensors.get_tensor(key).to(like.device)
        return tensor


@contextmanager
def open_lora(path: Path, base: Shapes, alpha: float = ALPHA) -> Iterator[Lora]:
    """Open the published adapter for a base model with these shapes.

    Raises: WeightsMissing naming every unknown key and every pair that is absent or mis-shaped.
    """
    shapes = safetensors_shapes(path)
    changes, fault = read_changes(shapes, base)
    if fault:
        raise WeightsMissing(f"The LoRA {path.name} does not match the model: {fault}", FETCH_AGAIN)
    expected, found = shapes_of(changes, shapes, base)
    for name, shape in base.items():
        change, halves = changes.get(name, Change()), (f"{name} (lora_A)", f"{name} (lora_B)")
        if not is_target(name, shape):
            for half in halves:
                expected.pop(half, None)
        elif not (change.down or change.up or change.whole):
            expected |= dict(zip(halves, ((0, shape[1]), (shape[0], 0)), strict=True))
    require_match(f"The LoRA {path.name}", expected, found)
    with open_safetensors(path) as tensors:
        yield Lora(tensors, changes, alpha)


@contextmanager
def open_user_lora(lora: UserLora, base: Shapes) -> Iterator[Lora]:
    """Open a user's adapter for a base model with these shapes; it may adapt only some layers.

    Raises: BadInput naming every unknown key, every missing half and every wrong shape.
    """
    changes = check_lora(lora, base)
    with open_safetensors(lora.path) as tensors:
        yield Lora(tensors, changes, lora.alpha, lora.weight)


def is_target(name: str, shape: Shape) -> bool:
    """Whether a base tensor is the weight of a linear layer that the published adapter changes."""
    module, _, leaf = name.rpartition(".")
    return leaf == "weight" and len(shape) == 2 and any(module.endswith(f".{target}") for target in TARGETS)
