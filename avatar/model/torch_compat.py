"""Functions of PyTorch that are not its public interface, in one place: a new release is checked here."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor


def set_expandable_segments(on: bool) -> None:
    """Have CUDA's memory asked for in segments that grow, or not. Raises: RuntimeError where it cannot be."""
    torch._C._accelerator_setAllocatorSettings(f"expandable_segments:{on}")


def cudnn_takes(q: Tensor) -> bool:
    """Whether PyTorch would let cuDNN attend with queries, keys and values of this kind, B h N d."""
    params = torch.backends.cuda.SDPAParams(q, q, q, None, 0.0, False, False)
    return torch.backends.cuda.can_use_cudnn_attention(params)


def cudnn_attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """cuDNN's attention, B h N d, and each query's log-sum-exp. Raises: RuntimeError where it has no plan."""
    out, lse = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True)[:2]
    return out, lse


def without_caches() -> AbstractContextManager[Any]:
    """torch.compile builds anew within it, whatever an earlier process has left on disk."""
    from torch.compiler import config

    patched: AbstractContextManager[Any] = config.patch(force_disable_caches=True)  # type: ignore[attr-defined]
    return patched


def is_build_failure(error: BaseException) -> bool:
    """Whether an error is torch.compile's about code that it could not build, as without a C compiler."""
    from torch._dynamo.exc import BackendCompilerFailed
    from torch._inductor.exc import InductorError

    return isinstance(error, BackendCompilerFailed | InductorError)
