"""Where a generation is computed, and in which formats."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from avatar.model.device_checks import grows_segments, pins
from avatar.model.quantize import FLOAT8
from avatar.preset import Memory

ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
DTYPES = {"bf16": torch.bfloat16, "fp8": torch.bfloat16, "fp32": torch.float32}  # of the arithmetic
RING_DTYPES = {"bf16": torch.bfloat16, "fp8": FLOAT8, "fp32": torch.float32}  # of what is kept
# in what CUDA, cuBLAS and cuDNN, and NCCL say of it by other errors
_SIGNS = ("out of memory", "ALLOC_FAILED", "Failed to CUDA calloc")


def ring_dtype(memory: Memory) -> torch.dtype:
    """How a run's rings are kept; int8 stands for the form that attention in 8 bits reads."""
    return torch.int8 if memory.attention_dtype == "int8" else RING_DTYPES[memory.ring_dtype]


def best_device(index: int = 0) -> torch.device:
    """The CUDA device of that index, or the CPU, on which only a toy model is of use.

    CUDA's memory is asked for in segments that grow, which wastes 4 GiB less; unless the user has set
    PyTorch's allocator up otherwise, or the first allocation of that kind fails.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if not any(name in os.environ for name in ALLOCATOR_VARIABLES):
        grows_segments(torch.device("cuda", index))
    return torch.device("cuda", index)


def uploaded(values: Tensor, device: torch.device) -> Tensor:
    """The same on a device, without waiting for what that is doing."""
    if device.type == "cuda" and values.device.type == "cpu" and pins(device):
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def downloading(values: Tensor) -> Tensor:
    """A copy in page-locked memory where there is any, whole once the device has done its work so far."""
    staged = torch.empty(values.shape, dtype=values.dtype, pin_memory=pins(values.device))
    return staged.copy_(values, non_blocking=True)


def downloaded(values: Tensor) -> Tensor:
    """A copy on the CPU of what a device is about to have computed, while other threads give it more to do.

    While a copy to pageable memory waits for the GPU, so do all that other threads hand to it: on two H200s a
    stage of a pipeline stood still for 90 of 215 ms. One to page-locked memory leaves them alone.
    """
    if values.device.type != "cuda":
        return values.cpu()
    staged, done = downloading(values), torch.cuda.Event(blocking=True)  # this thread sleeps meanwhile
    done.record(torch.cuda.current_stream(values.device))
    done.synchronize()
    return staged.clone()  # the page-locked one serves the next call


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device, or a library on it, could not get memory."""
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in _SIGNS)
