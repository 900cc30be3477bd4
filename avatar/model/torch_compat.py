"""All uses of PyTorch's private functions, in one place: check these against each new release."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor


def set_expandable_segments(on: bool) -> None:
    """Switch CUDA's expandable segments on or off. Raises: RuntimeError where that is not possible."""
    torch._C._accelerator_setAllocatorSettings(f"expandable_segments:{on}")


def cudnn_takes(q: Tensor) -> bool:
    """Whether PyTorch accepts queries, keys and values of this kind, B h N d, for cuDNN's attention."""
    params = torch.backends.cuda.SDPAParams(q, q, q, None, 0.0, False, False)
    return torch.backends.cuda.can_use_cudnn_attention(params)


def cudnn_attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """cuDNN's attention, B h N d, and each query's log-sum-exp. Raises: RuntimeError where it has no plan."""
    out, lse = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True)[:2]
    return out, lse


def without_caches() -> AbstractContextManager[Any]:
    """Context in which torch.compile always builds, ignoring its on-disk caches."""
    from torch.compiler import config

    patched: AbstractContextManager[Any] = config.patch(force_disable_caches=True)  # type: ignore[attr-defined]
    return patched


def is_build_failure(error: BaseException) -> bool:
    """Whether torch.compile raised the error because a build failed, e.g. without a C compiler."""
    from torch._dynamo.exc import BackendCompilerFailed
    from torch._inductor.exc import InductorError

    return isinstance(error, BackendCompilerFailed | InductorError)
