"""A PEFT LoRA file: read strictly, merged tensor by tensor while the base weights are loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avatar.model.weights.tensor_files import (
    Shape,
    Shapes,
    open_safetensors,
    require_match,
    safetensors_shapes,
)

ALPHA = 64.0  # the published LoRA's; the file does not carry it
TARGETS = ("q", "k", "v", "o", "ffn.0", "ffn.2")  # every linear layer so named has a pair

_PREFIX = "base_model.model."
_PAIR = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight")
_WRAPPED = re.compile(r"\.(?:base_layer|modules_to_save\.default|original_module)(?=\.)")


class Lora:
    """The adapter of one base model: W + alpha / rank · B·A, in float32.

    Keys may begin with base_model.model. and may carry .default; whole tensors replace the base's.
    """

    def __init__(
        self, tensors: Any, pairs: dict[str, tuple[str, str]], whole: dict[str, str], alpha: float
    ) -> None:
        self._tensors = tensors
        self._pairs = pairs
        self._whole = whole
        self._alpha = alpha

    def merge(self, name: str, weight: Tensor) -> Tensor:
        """The base tensor with what the adapter adds, in float32; itself where it adds nothing."""
        if name in self._whole:
            weight = self._tensors.get_tensor(self._whole[name]).to(weight.device)
        if name not in self._pairs:
            return weight
        down, up = (
            self._tensors.get_tensor(key).to(weight.device, torch.float32) for key in self._pairs[name]
        )
        return torch.addmm(weight.float(), up, down, alpha=self._alpha / down.shape[0])


@contextmanager
def open_lora(path: Path, base: Shapes, alpha: float = ALPHA) -> Iterator[Lora]:
    """Open an adapter for the base model with these tensors.

    Raises: WeightsMissing naming every key that matches nothing, every pair absent or of another shape.
    """
    found = safetensors_shapes(path)
    pairs: dict[str, dict[str, str]] = {}
    whole, shapes = {}, {}
    for key, shape in found.items():
        name, side = _read_key(key)
        if side:
            pairs.setdefault(name, {})[side] = key
        else:
            whole[name] = key
        shapes[name + (f" (lora_{side})" if side else "")] = shape
    require_match(f"The LoRA {path.name}", _expected(base, whole, shapes), shapes)
    with open_safetensors(path) as tensors:
        yield Lora(tensors, {name: (sides["A"], sides["B"]) for name, sides in pairs.items()}, whole, alpha)


def _read_key(key: str) -> tuple[str, str]:
    """A key's base tensor, and A or B when it is half of a pair."""
    name = key.removeprefix(_PREFIX)
    match = _PAIR.fullmatch(name)
    if match:
        return f"{match['module']}.weight", match["side"]
    return _WRAPPED.sub("", name), ""


def _expected(base: Shapes, whole: dict[str, str], shapes: Shapes) -> Shapes:
    """What the adapter must hold: a pair of one rank for each target, whole tensors as the base has them."""
    expected = {name: base[name] for name in whole if name in base}
    for name, shape in base.items():
        if not is_target(name, shape):
            continue
        down, up = (shapes.get(f"{name} (lora_{side})", ()) for side in "AB")
        rank = down[0] if down else up[-1] if up else 0
        if rank or name not in whole:
            expected[f"{name} (lora_A)"] = (rank, shape[1])
            expected[f"{name} (lora_B)"] = (shape[0], rank)
    return expected


def is_target(name: str, shape: Shape) -> bool:
    """Whether a base tensor is the weight of a linear layer that the adapter changes."""
    module, _, leaf = name.rpartition(".")
    return leaf == "weight" and len(shape) == 2 and any(module.endswith(f".{target}") for target in TARGETS)
