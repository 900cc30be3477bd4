"""LoRA files: read strictly, and merged tensor by tensor while the base weights load."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

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
PIECE_VALUES = 2**22  # merged at a time, to keep float32's peak memory low
ALL_ROWS = slice(None)
TARGETS = ("q", "k", "v", "o", "ffn.0", "ffn.2")  # every linear layer with such a name has a LoRA pair


@dataclass(frozen=True)
class Lora:
    """An adapter for one base model: W + weight · alpha / rank · B·A, in float32.

    Whole tensors replace the base's; differences are added. read: from a key of the file to its tensor.
    changes: by the base tensor's name. alpha: for pairs whose alpha is not in the file; None: their rank.
    """

    read: Callable[[str], Tensor]
    changes: Mapping[str, Change]
    alpha: float | None
    weight: float = 1.0

    def merge(self, name: str, weight: Tensor, rows: slice = ALL_ROWS) -> Tensor:
        """The base tensor with the adapter merged, in float32; unchanged if the adapter does not cover it.

        rows: which of the base tensor's rows `weight` is.
        """
        change = self.changes.get(name)
        if change is None:
            return weight
        if change.whole:
            whole = self._read(change.whole, weight)[rows]
            weight = whole if self.weight == 1 else torch.lerp(weight.float(), whole.float(), self.weight)
        if change.difference:
            weight = weight.float() + self.weight * self._read(change.difference, weight)[rows].float()
        if not change.down:
            return weight
        down = self._read(change.down, weight).float().flatten(1)
        up = self._read(change.up, weight)[rows].float().flatten(1)
        alpha = self._alpha_of(change, len(down))
        merged = torch.addmm(weight.float().flatten(1), up, down, alpha=self.weight * alpha / len(down))
        return merged.view(weight.shape)

    def brought(self, name: str, bring: Callable[[Tensor], Tensor]) -> Lora:
        """The adapter for one base tensor alone, with the tensors that change it brought elsewhere."""
        change = self.changes[name]
        tensors = {key: bring(self.read(key)) for key in change.tensors}
        if change.alpha:
            tensors[change.alpha] = self.read(change.alpha).clone()  # a number, which the host needs
        return replace(self, read=tensors.__getitem__, changes={name: change})

    def _alpha_of(self, change: Change, rank: int) -> float:
        if change.alpha:
            return float(self.read(change.alpha).item())
        return rank if self.alpha is None else self.alpha

    def _read(self, key: str, like: Tensor) -> Tensor:
        return self.read(key).to(like.device)


def merge_all(loras: Sequence[Lora], name: str, tensor: Tensor) -> Tensor:
    """A base tensor with all adapters merged in turn; the tensor itself if none covers it."""
    device = tensor.device
    here = [lora.brought(name, lambda part: part.to(device)) for lora in loras if name in lora.changes]
    if not here:
        return tensor
    merged = torch.empty(tensor.shape, dtype=torch.float32, device=device)
    for rows in pieces(tensor.shape):
        merged[rows] = merge_rows(here, name, tensor[rows], rows)
    return merged


def merge_rows(loras: Sequence[Lora], name: str, weight: Tensor, rows: slice) -> Tensor:
    """Some rows of a base tensor with all adapters merged in turn."""
    for lora in loras:
        weight = lora.merge(name, weight, rows)
    return weight


def pieces(shape: Shape) -> list[slice]:
    """Rows that are merged at a time; the same wherever a tensor is merged, so that the bits are the same."""
    count = max(1, PIECE_VALUES // max(1, math.prod(shape[1:])))
    return [slice(start, start + count) for start in range(0, shape[0], count)]


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
        yield Lora(tensors.get_tensor, changes, alpha)


@contextmanager
def open_user_lora(lora: UserLora, base: Shapes) -> Iterator[Lora]:
    """Open a user's adapter for a base model with these shapes; it may adapt only some layers.

    Raises: BadInput naming every unknown key, every missing half and every wrong shape.
    """
    changes = check_lora(lora, base)
    with open_safetensors(lora.path) as tensors:
        yield Lora(tensors.get_tensor, changes, lora.alpha, lora.weight)


def open_any_lora(lora: Path | UserLora, base: Shapes) -> AbstractContextManager[Lora]:
    """Open the published adapter, which is named by its path, or a user's. Raises: as the two above."""
    return open_lora(lora, base) if isinstance(lora, Path) else open_user_lora(lora, base)


def is_target(name: str, shape: Shape) -> bool:
    """Whether a base tensor is the weight of a linear layer that the published adapter changes."""
    module, _, leaf = name.rpartition(".")
    return leaf == "weight" and len(shape) == 2 and any(module.endswith(f".{target}") for target in TARGETS)
