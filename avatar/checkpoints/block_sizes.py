"""Bytes of a GGUF transformer's layers as they are stored, with what the LoRAs that change them take."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from avatar.checkpoints.lora_keys import read_changes
from avatar.checkpoints.tensor_headers import read_header
from avatar.checkpoints.tensor_names import published_names
from avatar.checkpoints.transformer_config import ModelConfig

Stamp = tuple[Path, int, int]  # a file, its size and time: a file that is replaced is read again


@dataclass(frozen=True)
class BlockSizes:
    """layers: each layer's bytes, with its audio injection's. largest: the most that one tensor takes."""

    layers: tuple[int, ...]
    largest: int


def block_sizes(config: ModelConfig, transformer: Path, loras: Iterable[Path]) -> BlockSizes:
    """The sizes of a GGUF file's layers; of the LoRAs, those tensors count that change a layer's.

    Raises: WeightsMissing, OSError.
    """
    return _sizes(config, _stamp(transformer), tuple(map(_stamp, loras)))


def _stamp(file: Path) -> Stamp:
    stat = file.stat()
    return file, stat.st_size, stat.st_mtime_ns


@lru_cache(maxsize=16)
def _sizes(config: ModelConfig, transformer: Stamp, loras: tuple[Stamp, ...]) -> BlockSizes:
    header = read_header(transformer[0])
    names = published_names(header.shapes)
    base = {ours: header.shapes[theirs] for ours, theirs in names.items()}
    sizes = {ours: header.sizes[theirs] for ours, theirs in names.items()}
    for lora, *_ in loras:
        stored = read_header(lora)
        changes, _ = read_changes(stored.shapes, base)
        for name in changes.keys() & sizes.keys():
            sizes[name] += sum(stored.sizes[key] for key in changes[name].tensors)
    layers, largest = [0] * config.num_layers, 0
    for name, num_bytes in sizes.items():
        index = config.layer_of(name)
        if index is not None:
            layers[index] += num_bytes
            largest = max(largest, num_bytes)
    return BlockSizes(tuple(layers), largest)
