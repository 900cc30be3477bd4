"""The device that a generation runs on, its dtypes, and copies to and from it."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from avatar.model.device_checks import forget_error, found_missing, grows_segments, pins
from avatar.model.quantize import FLOAT8, INT8
from avatar.preset import Memory

ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
# For arithmetic, and for storage of weights in 8 bits: by weight_dtype, once that of "8bit" is settled.
DTYPES = {"bf16": torch.bfloat16, "fp8": torch.bfloat16, "int8": torch.bfloat16, "fp32": torch.float32}
QUANTISED = {"fp8": FLOAT8, "int8": INT8}
RING_DTYPES = {"bf16": torch.bfloat16, "fp8": FLOAT8, "fp32": torch.float32}  # for storage
# Substrings of the out-of-memory errors of CUDA, of cuBLAS and cuDNN, and of NCCL.
_SIGNS = ("out of memory", "ALLOC_FAILED", "Failed to CUDA calloc")
_pinning_no_more: set[torch.device] = set()  # where the system's limit was reached after the trial


def quantised_dtype(memory: Memory) -> torch.dtype | None:
    """The dtype of the transformer's large weights where that is of 8 bits, else None."""
    return QUANTISED.get(memory.weight_dtype)


def ring_dtype(memory: Memory) -> torch.dtype:
    """The dtype of a run's rings; int8 means the format of 8-bit attention."""
    return torch.int8 if memory.attention_dtype == "int8" else RING_DTYPES[memory.ring_dtype]


def best_device(index: int = 0) -> torch.device:
    """The CUDA device with this index, or else the CPU, which is fast enough only for a toy model.

    Enables CUDA's expandable segments, which waste 4 GiB less, unless the user has configured PyTorch's
    allocator, or the first such allocation fails.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if not any(name in os.environ for name in ALLOCATOR_VARIABLES):
        grows_segments(torch.device("cuda", index))
    return torch.device("cuda", index)


def uploaded(values: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device without waiting for the device's current work."""
    if device.type == "cuda" and values.device.type == "cpu":
        staged = _pinned_if_possible(device, values.pin_memory)
        values = values if staged is None else staged
    return values.to(device, non_blocking=True)


def downloading(values: Tensor) -> Tensor:
    """Start a copy to host memory, pinned if possible; complete once the device has done its work so far."""
    host = partial(torch.empty, values.shape, dtype=values.dtype)
    staged = _pinned_if_possible(values.device, partial(host, pin_memory=True))
    return (host() if staged is None else staged).copy_(values, non_blocking=True)


def _pinned_if_possible(device: torch.device, make: Callable[[], Tensor]) -> Tensor | None:
    """A pinned tensor; None where the system pins nothing, or no more.

    What offloaded layers have pinned may leave nothing of a small limit, such as WSL2's.
    """
    if not pins(device) or device in _pinning_no_more:
        return None
    try:
        return make()
    except RuntimeError as error:
        forget_error(device)
        found_missing("pinned", error)
        _pinning_no_more.add(device)
        return None


def downloaded(values: Tensor) -> Tensor:
    """Copy a tensor to the CPU once it is computed, without blocking other threads' work on the device.

    While a copy to pageable memory waits for the GPU, so does everything that other threads enqueue: on two
    H200s a pipeline stage was idle for 90 of 215 ms. A copy to pinned memory does not block them.
    """
    if values.device.type != "cuda":
        return values.cpu()
    staged, done = downloading(values), torch.cuda.Event(blocking=True)  # this thread sleeps until then
    done.record(torch.cuda.current_stream(values.device))
    done.synchronize()
    return staged.clone()  # so that PyTorch can reuse the pinned memory for the next call


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error means that a device, or a library on it, ran out of memory."""
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in _SIGNS)
