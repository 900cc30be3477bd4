"""Dequantise GGUF blocks to float32 on their device: bit-identical to gguf-py, many times faster.

Source: ggml-org/llama.cpp gguf-py/gguf/quants.py and ggml/src/ggml-common.h (the blocks' layouts).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from avatar.checkpoints.gguf_header import TYPES
from avatar.checkpoints.tensor_headers import Shape
from avatar.errors import WeightsMissing

CHUNK_BLOCKS = 2**15  # widened at a time on a CPU, to keep peak memory low
CHUNK_VALUES = 2**22  # likewise on a GPU, where few large kernels are faster
BLOCKS = {name: (block, num_bytes) for name, block, num_bytes in TYPES.values()}
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class StoredBlocks:
    """A tensor as a GGUF file stores it. data: its bytes, uint8. dtype: GGUF's name of the type."""

    data: Tensor
    dtype: str
    shape: Shape

    def widen(self, rows: slice | None = None) -> Tensor:
        """The values of some rows, or of all; see widen_blocks. Raises: WeightsMissing."""
        if rows is None:
            return widen_blocks(self.data, self.dtype).view(self.shape)
        data = self.data.view(self.shape[0], -1)[rows]
        return widen_blocks(data.flatten(), self.dtype).view(-1, *self.shape[1:])


def widen_blocks(data: Tensor, dtype: str) -> Tensor:
    """Decode a tensor's bytes to flat values: float32, or the plain type that they are stored in.

    data: uint8. Raises: WeightsMissing for an unsupported type.
    """
    if dtype in PLAIN:
        return data.view(PLAIN[dtype])
    if dtype not in WIDEN:
        known = ", ".join((*PLAIN, *WIDEN))
        raise WeightsMissing(f"Tensors of the GGUF type {dtype} are not read.", f"Take a file of {known}.")
    block, num_bytes = BLOCKS[dtype]
    blocks = data.view(-1, num_bytes)
    out = torch.empty(len(blocks), block, dtype=torch.float32, device=data.device)
    chunk = CHUNK_BLOCKS if data.device.type == "cpu" else CHUNK_VALUES // block
    for piece, into in zip(blocks.split(chunk), out.split(chunk), strict=True):
        into.copy_(WIDEN[dtype](piece))
    return out.flatten()


def _half(data: Tensor) -> Tensor:
    """Two bytes of each block as a float16, widened: B 1."""
    return data.contiguous().view(torch.float16).float()


def _nibbles(data: Tensor) -> Tensor:
    """B n bytes to B 2n values: the low nibbles, then the high ones."""
    return torch.cat([data & 15, data >> 4], dim=-1)


def _bits(data: Tensor) -> Tensor:
    """B 4 bytes to their 32 bits, lowest first."""
    shifts = torch.arange(8, dtype=torch.uint8, device=data.device)
    return ((data.unsqueeze(-1) >> shifts) & 1).flatten(1)


def _q8_0(blocks: Tensor) -> Tensor:
    return _half(blocks[:, :2]) * blocks[:, 2:].contiguous().view(torch.int8).float()


def _q4_0(blocks: Tensor) -> Tensor:
    return _half(blocks[:, :2]) * (_nibbles(blocks[:, 2:]).float() - 8)


def _q4_1(blocks: Tensor) -> Tensor:
    return _half(blocks[:, :2]) * _nibbles(blocks[:, 4:]).float() + _half(blocks[:, 2:4])


def _q5_0(blocks: Tensor) -> Tensor:
    values = _nibbles(blocks[:, 6:]) | (_bits(blocks[:, 2:6]) << 4)
    return _half(blocks[:, :2]) * (values.float() - 16)


def _q5_1(blocks: Tensor) -> Tensor:
    values = _nibbles(blocks[:, 8:]) | (_bits(blocks[:, 4:8]) << 4)
    return _half(blocks[:, :2]) * values.float() + _half(blocks[:, 2:4])


def _scales(data: Tensor) -> tuple[Tensor, Tensor]:
    """12 bytes to the 8 scales and 8 minima of 6 bits each: B 8 1 float32."""
    low, middle, high = data.split(4, dim=1)
    scale = torch.cat([low & 63, (high & 15) | ((low >> 2) & 48)], dim=1)
    least = torch.cat([middle & 63, (high >> 4) | ((middle >> 2) & 48)], dim=1)
    return scale.float().unsqueeze(-1), least.float().unsqueeze(-1)


def _shifted(blocks: Tensor, values: Tensor) -> Tensor:
    """A superblock's values, B 8 32, times its scales, minus its minima."""
    scale, least = _scales(blocks[:, 4:16])
    step, shift = _half(blocks[:, :2]).unsqueeze(-1), _half(blocks[:, 2:4]).unsqueeze(-1)
    return ((step * scale) * values.float() - shift * least).flatten(1)


def _q4_k(blocks: Tensor) -> Tensor:
    return _shifted(blocks, _nibbles(blocks[:, 16:].view(-1, 4, 32)).view(-1, 8, 32))


def _q5_k(blocks: Tensor) -> Tensor:
    low = _nibbles(blocks[:, 48:].view(-1, 4, 32)).view(-1, 8, 32)
    shifts = torch.arange(8, dtype=torch.uint8, device=blocks.device).view(8, 1)
    return _shifted(blocks, low | (((blocks[:, 16:48].unsqueeze(1) >> shifts) & 1) << 4))


def _q6_k(blocks: Tensor) -> Tensor:
    low = _nibbles(blocks[:, :128].view(-1, 2, 64))  # per half: the low nibbles of 64 bytes, then the high
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8, device=blocks.device).view(4, 1)
    high = ((blocks[:, 128:192].view(-1, 2, 1, 32) >> shifts) & 3).flatten(2)
    values = (low | (high << 4)).float() - 32
    scale = blocks[:, 192:208].contiguous().view(torch.int8).float() * _half(blocks[:, 208:])
    return (scale.unsqueeze(-1) * values.view(-1, 16, 16)).flatten(1)


WIDEN: dict[str, Callable[[Tensor], Tensor]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
