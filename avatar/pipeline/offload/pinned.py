"""Pinned host memory, from which the GPU can copy while it computes, and the layout of tensors in it.

PyTorch's own pinned allocator rounds every allocation up to a power of two and never returns memory to the
system, which a host that holds half a model cannot afford. This module maps exactly as many pages as needed,
registers them with the driver, and frees them with the last tensor in them.
"""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from avatar.errors import DoesNotFit
from avatar.model.device_checks import forget_error, found_missing

ALIGN_BYTES = 256  # of each tensor in a buffer: same as CUDA's allocations, which kernels are compiled for

_pinned: dict[int, int] = {}  # address to bytes


def pinned_bytes() -> int:
    """Bytes of host memory that this process has pinned."""
    return sum(list(_pinned.values()))


def host_buffer(num_bytes: int, device: torch.device) -> Tensor:
    """Allocate host memory, pinned if the device is a GPU.

    If the system refuses to pin that much, the memory is pageable, and copies are slower. Raises: DoesNotFit
    when there is not enough memory.
    """
    if device.type != "cuda" or not num_bytes:
        return torch.empty(num_bytes, dtype=torch.uint8)
    try:
        pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise _not_enough_memory(num_bytes) from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)  # far fewer pages to lock
    array = np.frombuffer(pages, dtype=np.uint8)
    address, tensor = array.ctypes.data, torch.from_numpy(array)
    tensor.zero_()  # maps the pages on all cores; the driver would do it on one, under its lock
    with torch.cuda.device(device):
        if int(torch.cuda.cudart().cudaHostRegister(address, num_bytes, 0)):
            forget_error(device)
            found_missing("pinned", MemoryError(f"{num_bytes / 2**30:.2f} GiB could not be locked"))
            return tensor
    _pinned[address] = num_bytes
    # The array is freed with the last tensor on it, and then its pages.
    weakref.finalize(array, _unpin, address, device).atexit = False
    return tensor


def _unpin(address: int, device: torch.device) -> None:
    """Unpin pages once no copy to or from them can be in progress."""
    with torch.cuda.device(device):
        torch.cuda.synchronize()
        torch.cuda.check_error(int(torch.cuda.cudart().cudaHostUnregister(address)))
    del _pinned[address]


def _not_enough_memory(num_bytes: int) -> DoesNotFit:
    return DoesNotFit(
        f"The host has no {num_bytes / 2**30:.1f} GiB of memory for what the GPU leaves there.",
        "Close other programs, or choose a preset that keeps less in host memory.",
    )


@dataclass(frozen=True)
class BufferLayout:
    """Layout of consecutive tensors in a byte buffer: shape, strides, dtype and first byte of each."""

    entries: tuple[tuple[torch.Size, tuple[int, ...], torch.dtype, int], ...]
    num_bytes: int

    @classmethod
    def of(cls, tensors: Iterable[Tensor]) -> BufferLayout:
        """A layout for tensors like these: without their gaps, but with the same order of axes in memory."""
        entries, end = [], 0
        for tensor in tensors:
            strides = torch.empty_like(tensor, device="meta").stride()
            entries.append((tensor.shape, strides, tensor.dtype, end))
            end += -(-tensor.nbytes // ALIGN_BYTES) * ALIGN_BYTES
        return cls(tuple(entries), end)

    def views(self, buffer: Tensor) -> list[Tensor]:
        """The tensors as views of a buffer."""
        return [
            buffer[start : start + shape.numel() * dtype.itemsize].view(dtype).as_strided(shape, strides)
            for shape, strides, dtype, start in self.entries
        ]
