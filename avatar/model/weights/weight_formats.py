"""A file's tensors under their published names, in any storage format: read and widened one by one.

Source: see checkpoints.tensor_names for names; ComfyUI comfy/utils.py convert_old_quants for fp8 with scales.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from avatar.checkpoints.gguf_header import read_gguf
from avatar.checkpoints.tensor_headers import GGUF, Shape, read_header
from avatar.checkpoints.tensor_names import SCALES, published_names
from avatar.errors import WeightsMissing
from avatar.model.weights.gguf import StoredBlocks, widen_blocks
from avatar.model.weights.tensor_files import FETCH_AGAIN, Shapes

FLOAT8_FORMAT = "float8_e4m3fn"
FLOAT8_TYPES = (torch.float8_e4m3fn, torch.float8_e5m2)


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of a .safetensors or .gguf file by published name; the file is mapped, never read whole.

    Tensors stored in fp8 or in GGUF blocks are returned in float32.
    """

    def __init__(self, path: Path, widen: bool = True) -> None:
        """widen: False returns fp8 unchanged, for callers that have its scales.

        Raises: WeightsMissing when the file is absent, truncated, or of an unsupported kind."""
        self._path = path
        if not path.is_file():
            raise WeightsMissing(f"{path.name} is missing from the checkpoint.", FETCH_AGAIN)
        try:
            shapes = read_header(path).shapes
        except WeightsMissing as error:
            raise WeightsMissing(error.message, FETCH_AGAIN) from error
        self.names = published_names(shapes)
        self.shapes: Shapes = {ours: shapes[theirs] for ours, theirs in self.names.items()}
        self._widen = widen
        self._file: TensorFile | None = None

    def _opened(self) -> TensorFile:
        """The file, mapped on first use."""
        if self._file is None:
            is_gguf = self._path.suffix == GGUF
            self._file = _GgufFile(self._path) if is_gguf else _SafeFile(self._path, self._widen)
        return self._file

    def close(self) -> None:
        """Release the mapping; the next use maps the file again."""
        self._file = None

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, name: str) -> Tensor:
        return self.read(name)

    def read(self, name: str, device: torch.device | str = "cpu") -> Tensor:
        """Read a tensor to a device and widen it there. Raises: WeightsMissing."""
        return self._opened().read(self.names[name], device)

    def blocks(self, name: str) -> StoredBlocks:
        """A tensor of a GGUF file as it is stored; its bytes stay in the file."""
        file = self._opened()
        assert isinstance(file, _GgufFile)
        return file.blocks(self.names[name])

    def table(self, name: str) -> StoredTable:
        """A matrix that stays in the file and whose rows are looked up."""
        return StoredTable(self._opened(), self.names[name], self.shapes[name])


class StoredTable:
    """Row access to a matrix in a file. shape: the matrix's."""

    def __init__(self, file: TensorFile, name: str, shape: Shape) -> None:
        self._file, self._name, self.shape = file, name, shape

    def __getitem__(self, ids: Tensor) -> Tensor:
        """Ids ... to rows ... D, on the CPU."""
        return self._file.rows(self._name, ids)


class _SafeFile:
    """A safetensors file, with ComfyUI's scales for fp8 weights if present."""

    def __init__(self, path: Path, widen: bool) -> None:
        self._name, self._names, self._widens = path.name, set(read_header(path).shapes), widen
        try:
            self._file: Any = safe_open(path, framework="pt", device="cpu")
        except (SafetensorError, OSError) as error:
            raise WeightsMissing(f"{path.name} is truncated or corrupt.", FETCH_AGAIN) from error

    def read(self, name: str, device: torch.device | str) -> Tensor:
        return self._widened(self._get(name).to(device), name)

    def rows(self, name: str, ids: Tensor) -> Tensor:
        return self._widened(self._get(name)[ids], name, ids)

    def _get(self, name: str) -> Tensor:
        try:
            tensor: Tensor = self._file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise WeightsMissing(f"{self._name} is truncated or corrupt.", FETCH_AGAIN) from error
        return tensor

    def _widened(self, values: Tensor, name: str, rows: Tensor | None = None) -> Tensor:
        """Apply ComfyUI's scales to fp8 values. Raises: WeightsMissing for an unsupported ComfyUI format."""
        module = name.removesuffix(".weight")
        if module != name and (mark := f"{module}.comfy_quant") in self._names:
            kind = json.loads(bytes(self._get(mark).tolist())).get("format")
            if kind != FLOAT8_FORMAT:
                text = f"{self._name} is quantised as {kind}, which is not read."
                raise WeightsMissing(text, "Take its fp8_scaled or bf16 file.")
        if not self._widens or values.dtype not in FLOAT8_TYPES:
            return values
        wide = values.float()
        scale_name = next((module + end for end in SCALES if module + end in self._names), None)
        if scale_name is None or module == name:
            return wide
        scale = self._get(scale_name).to(wide.device, torch.float32).flatten()
        if len(scale) > 1:  # one per row
            per_row = scale if rows is None else scale[rows]
            scale = per_row.view(*per_row.shape, *[1] * (wide.ndim - per_row.ndim))
        return wide * scale


class _GgufFile:
    """A GGUF file, mapped."""

    def __init__(self, path: Path) -> None:
        self._tensors = read_gguf(path).tensors
        self._bytes = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)

    def read(self, name: str, device: torch.device | str) -> Tensor:
        blocks = self.blocks(name)
        data = blocks.data.to(device)
        return replace(blocks, data=data.clone() if data.storage_offset() % 8 else data).widen()

    def blocks(self, name: str) -> StoredBlocks:
        entry = self._tensors[name]
        data = self._bytes[entry.start : entry.start + entry.num_bytes]
        return StoredBlocks(data, entry.dtype, entry.shape)

    def rows(self, name: str, ids: Tensor) -> Tensor:
        entry = self._tensors[name]
        data = self._bytes[entry.start : entry.start + entry.num_bytes].view(entry.shape[0], -1)
        return widen_blocks(data[ids.flatten()].flatten(), entry.dtype).view(*ids.shape, -1)


TensorFile = _SafeFile | _GgufFile
