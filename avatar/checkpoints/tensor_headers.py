"""Names, shapes and dtypes of a file's tensors, read from its header: no tensor is opened, no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from avatar.checkpoints.gguf_header import read_gguf
from avatar.errors import WeightsMissing

MOST_HEADER_BYTES = 100 * 2**20  # the format's limit

SAFETENSORS, GGUF = ".safetensors", ".gguf"

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Header:
    """A file's header. shapes, dtypes (as the file spells them), sizes (in bytes): by tensor name."""

    shapes: Mapping[str, Shape]
    dtypes: Mapping[str, str]
    sizes: Mapping[str, int]
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_header(path: Path) -> Header:
    """The header of a .safetensors or .gguf file, cached until the file changes.

    Raises: WeightsMissing for a file that cannot be read or has another format.
    """
    try:
        stat = path.stat()
        return _header(path, stat.st_size, stat.st_mtime_ns)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or f"no {path.suffix[1:]} file, or cut short"
        text = f"{path.name} is truncated or corrupt ({reason})."
        raise WeightsMissing(text, "Fetch the file again.") from error


@lru_cache(maxsize=256)
def _header(path: Path, num_bytes: int, mtime_ns: int) -> Header:
    """safetensors: 8 bytes of length, then JSON. Raises: OSError, and others for unexpected JSON."""
    if path.suffix == GGUF:
        tensors = read_gguf(path).tensors
        dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
        sizes = {name: tensor.num_bytes for name, tensor in tensors.items()}
        return Header({name: tensor.shape for name, tensor in tensors.items()}, dtypes, sizes)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(MOST_HEADER_BYTES, num_bytes):
            raise ValueError("no header")
        header: dict[str, Any] = json.loads(file.read(length))
    metadata = header.pop("__metadata__", {})
    if header and 8 + length + max(entry["data_offsets"][1] for entry in header.values()) > num_bytes:
        raise ValueError("cut short")
    shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
    dtypes = {name: entry["dtype"] for name, entry in header.items()}
    sizes = {name: entry["data_offsets"][1] - entry["data_offsets"][0] for name, entry in header.items()}
    return Header(shapes, dtypes, sizes, metadata)
