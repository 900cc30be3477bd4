"""Offloaded layers kept as the blocks of a GGUF file, where the host has no room for what they decode to.

A layer is copied to the device tensor by tensor, as it is stored, with the LoRAs that change it. There it is
dequantised, merged and rounded as loading would have done it, so that the bits are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from avatar.checkpoints.lora_files import UserLora
from avatar.checkpoints.transformer_config import LAYER, ModelConfig
from avatar.model.linear_8bit import QuantisedLinear, Quantiser
from avatar.model.quantize import quantise_weight
from avatar.model.transformer import LayerParts, StreamingTransformer, held_dtype
from avatar.model.weights.checkpoint import CheckpointFiles
from avatar.model.weights.gguf import StoredBlocks
from avatar.model.weights.loading import Check, go_on, install, load_transformer
from avatar.model.weights.lora import Lora, merge_rows, open_any_lora, pieces
from avatar.model.weights.weight_cache import load_quantised
from avatar.model.weights.weight_formats import StoredTensors
from avatar.pipeline.offload.host_layers import HostLayers, LayerSlot
from avatar.pipeline.offload.pinned import BufferLayout, host_buffer

Bring = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a layer as its file stores it. loras: those that change it."""

    name: str
    blocks: StoredBlocks
    loras: tuple[Lora, ...]

    @property
    def tensors(self) -> list[Tensor]:
        """All that is stored, in the order in which brought() takes it."""
        changes = ((lora, key) for lora in self.loras for key in lora.changes[self.name].tensors)
        return [self.blocks.data, *(lora.read(key) for lora, key in changes)]

    def brought(self, bring: Bring) -> StoredTensor:
        """The same with everything that is stored brought elsewhere."""
        blocks = replace(self.blocks, data=bring(self.blocks.data))
        return replace(
            self, blocks=blocks, loras=tuple(lora.brought(self.name, bring) for lora in self.loras)
        )

    def pieces(self) -> Iterator[tuple[slice, Tensor]]:
        """The merged values, some rows at a time, on the device where the blocks are."""
        for rows in pieces(self.blocks.shape):
            yield rows, merge_rows(self.loras, self.name, self.blocks.widen(rows), rows)


class BlockLayers(HostLayers):
    """Some of a transformer's layers with their injections, on the host as stored, each in one buffer."""

    def __init__(
        self,
        model: StreamingTransformer,
        indices: Sequence[int],
        num_slots: int,
        device: torch.device,
        files: CheckpointFiles,
        check: Check,
    ) -> None:
        """Read layers of a model by load_beside_blocks(), fused since; the device gets slots for them.

        Raises: WeightsMissing, DoesNotFit, whatever check raises.
        """
        self._device, self._check = device, check
        self._stored: dict[int, list[StoredTensor]] = {index: [] for index in indices}
        with ExitStack() as stack:
            (file,) = files.shards
            source = StoredTensors(file)
            adapters: list[Path | UserLora] = [files.lora, *files.loras]
            loras = [stack.enter_context(open_any_lora(lora, source.shapes)) for lora in adapters]
            for name in source:
                index = model.config.layer_of(name)
                if index in self._stored:
                    here = tuple(lora for lora in loras if name in lora.changes)
                    self._stored[index].append(StoredTensor(name, source.blocks(name), here))
            super().__init__(model, indices, num_slots, device)
        self._check = go_on  # nothing of this run is kept for the next
        self._targets = {id(slot.place): _targets_of(slot.place.parts) for slot in self._slots}

    def _on_host(self, index: int, device: torch.device) -> Tensor:
        """Copy a layer from its file; returns its buffer."""
        self._check()
        stored = self._stored[index]
        layout = BufferLayout.of(chain.from_iterable(tensor.tensors for tensor in stored))
        buffer = host_buffer(layout.num_bytes, device)
        views = iter(layout.views(buffer))
        self._stored[index] = [tensor.brought(lambda part: next(views).copy_(part)) for tensor in stored]
        return buffer

    def _load(self, key: int, place: LayerSlot) -> None:
        targets = self._targets[id(place)]
        for stored in self._stored[key]:
            target, scale = targets[_leaf(stored.name)]
            for rows, values in stored.brought(self._copied).pieces():
                if scale is None:
                    target[rows].copy_(values)
                    continue
                quantised, scales = quantise_weight(values, target.dtype)
                target[rows].copy_(quantised)
                scale[rows].copy_(scales)

    def _copied(self, part: Tensor) -> Tensor:
        """A copy on the device, on its way; memory that this stream alone uses and frees."""
        copy = torch.empty_like(part, device=self._device)
        self.traffic.copy_in(copy, part)
        return copy


def load_beside_blocks(
    files: CheckpointFiles,
    device: torch.device,
    dtype: torch.dtype,
    indices: Sequence[int],
    *,
    format: torch.dtype | None,
    check: Check,
) -> StreamingTransformer:
    """The transformer without some layers, which stay on the meta device with the dtypes that they will have.

    format: of quantised weights, None for none.
    Its other layers are quantised as they load: the cache would be written for all of them.
    Raises: WeightsMissing, whatever check raises.
    """
    config = ModelConfig.load(files.config)

    def is_here(name: str) -> bool:
        return config.layer_of(name) not in indices

    if format is None:
        model = load_transformer(files, device, dtype, select=is_here, place=lambda *_: check())
    else:
        model = load_quantised(files, device, dtype, format, select=is_here, check=check)
    quantiser = None if format is None else Quantiser(format)
    for name, value in model.state_dict().items():
        if config.layer_of(name) in indices:
            placed = None if quantiser is None else quantiser.place(name, value)
            install(model, name, value.to(held_dtype(name, dtype)) if placed is None else placed.data)
    if quantiser is not None:
        quantiser.install(model)
    return model


Target = tuple[Tensor, Tensor | None]
"""A tensor of a layer on the device, and its scales where it is quantised."""


def _targets_of(parts: LayerParts) -> dict[str, Target]:
    """A fused layer's tensors by their published names without the index."""
    roots: dict[str, nn.Module] = {LAYER: parts.layer}
    if parts.injection is not None:
        roots |= {"injector": parts.injection.attention, "injector_adain_layers": parts.injection.adaln}
    found: dict[str, Target] = {}
    for root, whole in roots.items():
        for path, module in whole.named_modules(prefix=root):
            for leaf, tensor in module.named_parameters(recurse=False):
                scale = module.scale if leaf == "weight" and isinstance(module, QuantisedLinear) else None
                if not path.endswith(".qkv"):
                    found[f"{path}.{leaf}"] = tensor, scale
                    continue
                scales = (None,) * 3 if scale is None else scale.chunk(3)
                for letter, target in zip("qkv", zip(tensor.chunk(3), scales, strict=True), strict=True):
                    found[f"{path.removesuffix('qkv')}{letter}.{leaf}"] = target
    return found


def _leaf(name: str) -> str:
    """A published name without its index: "blocks.7.norm3.bias" → "blocks.norm3.bias"."""
    part, *rest = name.split(".")
    return ".".join([part, *rest[1:]] if part == LAYER else [rest[0], *rest[2:]])
