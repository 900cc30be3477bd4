"""Page-locked host memory, from which the GPU copies by itself while it computes; and tensors laid into it.

PyTorch's own pinned allocator rounds every piece up to a power of two and never gives any back to the system,
which a host that holds half a model cannot afford. So pages are mapped here, exactly as many as are needed,
registered with the driver, and given back when the last tensor in them is gone.
"""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from avatar.errors import DoesNotFit
from avatar.model.device_checks import found_missing

ALIGN_BYTES = 256  # of each tensor in a buffer: what CUDA's allocations have, and kernels are compiled for

_pinned: dict[int, int] = {}  # bytes by address


def pinned_bytes() -> int:
    """Host memory that this process holds page-locked now."""
    return sum(list(_pinned.values()))


def host_buffer(num_bytes: int, device: torch.device) -> Tensor:
    """Bytes on the host, page-locked where the device is a GPU, unless the system refuses to lock so many.

    Then they are pageable, and their copies slower. Raises: DoesNotFit where the memory itself is not there.
    """
    if device.type != "cuda" or not num_bytes:
        return torch.empty(num_bytes, dtype=torch.uint8)
    try:
        pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise _no_room(num_bytes) from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)  # far fewer pages to lock
    array = np.frombuffer(pages, dtype=np.uint8)
    address, tensor = array.ctypes.data, torch.from_numpy(array)
    tensor.zero_()  # all cores map the pages; the driver would do it alone, under its lock
    with torch.cuda.device(device):
        if int(torch.cuda.cudart().cudaHostRegister(address, num_bytes, 0)):
            _forget_error(device)
            found_missing("pinned", MemoryError(f"{num_bytes / 2**30:.2f} GiB could not be locked"))
            return tensor
    _pinned[address] = num_bytes
    # The array dies with the last tensor on it, and its pages after it.
    weakref.finalize(array, _unpin, address, device).atexit = False
    return tensor


def _unpin(address: int, device: torch.device) -> None:
    """Unlock pages once no copy can be under way to or from them."""
    with torch.cuda.device(device):
        torch.cuda.synchronize()
        torch.cuda.check_error(int(torch.cuda.cudart().cudaHostUnregister(address)))
    del _pinned[address]


def _forget_error(device: torch.device) -> None:
    """CUDA tells of a failed call once more at the next kernel: at this one, and no one else's."""
    with suppress(RuntimeError):
        torch.zeros(1, device=device)


def _no_room(num_bytes: int) -> DoesNotFit:
    return DoesNotFit(
        f"The host has no {num_bytes / 2**30:.1f} GiB of memory for what the GPU leaves there.",
        "Close other programs, or choose a preset that keeps less in host memory.",
    )


@dataclass(frozen=True)
class BufferLayout:
    """Where tensors lie in a buffer of bytes, one behind the other: shape, strides, dtype and first byte."""

    entries: tuple[tuple[torch.Size, tuple[int, ...], torch.dtype, int], ...]
    num_bytes: int

    @classmethod
    def of(cls, tensors: Iterable[Tensor]) -> BufferLayout:
        """Room for tensors like these, without their gaps, but with the same order of axes in memory."""
        entries, end = [], 0
        for tensor in tensors:
            strides = torch.empty_like(tensor, device="meta").stride()
            entries.append((tensor.shape, strides, tensor.dtype, end))
            end += -(-tensor.nbytes // ALIGN_BYTES) * ALIGN_BYTES
        return cls(tuple(entries), end)

    def views(self, buffer: Tensor) -> list[Tensor]:
        """The tensors in a buffer, whose contents they share."""
        return [
            buffer[start : start + shape.numel() * dtype.itemsize].view(dtype).as_strided(shape, strides)
            for shape, strides, dtype, start in self.entries
        ]
