"""A GGUF file's metadata and tensor descriptions, read from its header; no tensor is opened.

The gguf package's own reader takes 15 s for the 256,384 words of a prompt encoder; tests compare with it.
Source: ggml-org/ggml docs/gguf.md; block sizes: gguf-py constants.py, GGML_QUANT_SIZES.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT, ALIGNMENT_KEY = 32, "general.alignment"
ORIGINAL_SHAPE = "comfy.gguf.orig_shape."  # key prefix for reshaped tensors: city96/ComfyUI-GGUF loader.py
MOST_AXES = 8
STRING, ARRAY = 8, 9
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
# Type number: name, values per block, bytes per block.
TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    30: ("BF16", 1, 2),
}


@dataclass(frozen=True)
class GgufTensor:
    """A tensor's location. shape: in torch's order, the fastest axis last. start: byte offset in the file."""

    shape: tuple[int, ...]
    dtype: str
    start: int
    num_bytes: int


@dataclass(frozen=True)
class GgufHeader:
    """A parsed header. values: metadata by key. tensors: by name; num_bytes is 0 for an unknown type."""

    values: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


def read_gguf(path: Path) -> GgufHeader:
    """Read a file's header. Raises: OSError; ValueError for a file that is truncated or not GGUF."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return _Reader(data).header()
        except (struct.error, UnicodeDecodeError, OverflowError, KeyError, MemoryError) as error:
            raise ValueError("no GGUF file, or cut short") from error


class _Reader:
    """Reads the header sequentially."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at = data, 4

    def header(self) -> GgufHeader:
        if self._data[:4] != MAGIC or self._number("I") not in VERSIONS:
            raise ValueError("no GGUF file of a known version")
        num_tensors, num_values = self._number("Q"), self._number("Q")
        values = {self._text(): self._value(self._number("I")) for _ in range(num_values)}
        entries = [
            (self._text(), self._shape(), self._number("I"), self._number("Q")) for _ in range(num_tensors)
        ]
        alignment = values.get(ALIGNMENT_KEY, ALIGNMENT)
        begin = -(-self._at // alignment) * alignment
        tensors = {}
        for name, shape, kind, offset in entries:
            dtype, block, block_bytes = TYPES.get(kind, (f"type {kind}", 1, 0))
            num_bytes = math.prod(shape) // block * block_bytes
            if begin + offset + num_bytes > len(self._data):
                raise ValueError("cut short")
            original = values.get(f"{ORIGINAL_SHAPE}{name}")
            tensors[name] = GgufTensor(tuple(original or shape), dtype, begin + offset, num_bytes)
        return GgufHeader(values, tensors)

    def _number(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self._data, self._at)
        self._at += struct.calcsize(f"<{code}")
        return value

    def _text(self) -> str:
        return self._bytes().decode("utf-8")

    def _bytes(self) -> bytes:
        length = self._number("Q")
        if length > len(self._data) - self._at:
            raise ValueError("cut short")
        self._at += length
        return self._data[self._at - length : self._at]

    def _shape(self) -> tuple[int, ...]:
        num_axes = self._number("I")
        if num_axes > MOST_AXES:
            raise ValueError("a tensor of too many axes")
        return tuple(reversed([self._number("Q") for _ in range(num_axes)]))

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._text()
        if kind != ARRAY:
            return self._number(NUMBERS[kind])
        kind, length = self._number("I"), self._number("Q")
        if kind in (STRING, ARRAY):
            return [self._bytes() if kind == STRING else self._value(ARRAY) for _ in range(length)]
        values = struct.unpack_from(f"<{length}{NUMBERS[kind]}", self._data, self._at)
        self._at += struct.calcsize(f"<{length}{NUMBERS[kind]}")
        return values
