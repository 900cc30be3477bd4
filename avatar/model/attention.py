"""The single entry point for attention: runs the fastest kernel that the device has."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from avatar.model.device_checks import has_cudnn_attention
from avatar.model.torch_compat import cudnn_attention, cudnn_takes

# On an H200 at 3168 queries, 15312 keys, 40 heads of 128 in bf16: cuDNN 1.62 ms, PyTorch's flash 2.87 ms.
SDPA_PRIORITY = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
CUDNN_CAPABILITY = (9, 0)
HALF_DTYPES = (torch.bfloat16, torch.float16)
# (module, major compute capabilities that it ships kernels for): FlashAttention 4, then 3.
FLASH_MODULES = (("flash_attn.cute", (10,)), ("flash_attn_interface", (9,)))

# cuDNN's tile size. On an H200 at 3168 queries: 1.82 ms for 15312 keys, 1.69 ms for 15360 (whole tiles).
KEY_TILE = 128

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Full attention of every query to every key.

    q: B N h d; k, v: B M h d; any floating dtype, one device. Returns B N h d.
    """
    if q.is_cuda and q.dtype in HALF_DTYPES:
        return kernel_for(q.device)(q, k, v)
    return sdpa(q, k, v)


@functools.cache
def kernel_for(device: torch.device) -> Kernel:
    """The half-precision kernel for a CUDA device: FlashAttention if installed, else PyTorch's."""
    major, _ = torch.cuda.get_device_capability(device)
    for name, capabilities in FLASH_MODULES:
        if major in capabilities and installed(name):
            return flash_kernel(name)
    return prioritised_sdpa


def installed(module: str) -> bool:
    """Whether a module can be imported, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is absent
        return False


def flash_kernel(module: str) -> Kernel:
    """FlashAttention's function from the given module, wrapped to return only the output."""
    flash = importlib.import_module(module).flash_attn_func

    def kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = flash(q, k, v)
        return out[0] if isinstance(out, tuple) else out  # some releases also return the log-sum-exp

    return kernel


def prioritised_sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's attention: cuDNN first where it is fastest and works, then flash, then the others."""
    priority = SDPA_PRIORITY if cudnn_first(q.device) else SDPA_PRIORITY[1:]
    with sdpa_kernel(priority, set_priority=True):
        return sdpa(q, k, v)


@functools.cache
def cudnn_first(device: torch.device) -> bool:
    """Whether cuDNN's attention is tried first: on Hopper and later (measured there), if it works."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < CUDNN_CAPABILITY:
        return False
    return has_cudnn_attention(device)


def attends_in_parts(q: Tensor) -> bool:
    """Whether attention_with_lse has a kernel for these queries (N h d) and nothing better is installed."""
    if not (q.is_cuda and q.dtype in HALF_DTYPES and kernel_for(q.device) is prioritised_sdpa):
        return False
    heads = q[None].transpose(1, 2)
    return cudnn_takes(heads) and cudnn_first(q.device)


def attention_with_lse(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """cuDNN's attention, N h d, and each query's log-sum-exp, h N float32."""
    q, k, v = (t[None].transpose(1, 2) for t in (q, k, v))
    out, lse = cudnn_attention(q, k, v)
    return out[0].transpose(0, 1), lse.reshape(q.shape[1:3])


def join_parts(
    q: Tensor, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], padding_key: Tensor, padding: int
) -> Tensor:
    """Combine two separate attentions into attention over both sets of keys: N h d.

    The first set ends in `padding` copies of one of its own keys, with zero values; their contribution to the
    softmax sum is subtracted. That key is also present itself, so the remaining sum never cancels to zero.
    first, second: results of attention_with_lse. padding_key: h d.
    """
    padded = (q.float() * padding_key.float()).sum(-1) * q.shape[-1] ** -0.5
    first_lse, second_lse = first[1].t(), second[1].t()
    top = torch.maximum(first_lse, second_lse)
    first_sum, second_sum = (first_lse - top).exp(), (second_lse - top).exp()
    total = first_sum + second_sum - padding * (padded - top).exp()
    out = first[0].float() * (first_sum / total).unsqueeze(-1)
    return (out + second[0].float() * (second_sum / total).unsqueeze(-1)).to(q.dtype)


def attention_weights(q: Tensor, k: Tensor) -> Tensor:
    """Softmax weights over a few keys, in plain arithmetic that torch.compile fuses with surrounding code.

    q: B N h d; k: B M h d. Returns B N M h in q's dtype; the weights sum to 1 over the keys.
    """
    scores = (q.unsqueeze(2).float() * k.unsqueeze(1).float()).sum(-1) * q.shape[-1] ** -0.5
    return scores.softmax(dim=2).to(q.dtype)


def few_keys_weights(q: Tensor, k: Tensor, counts: Tensor) -> Tensor:
    """Softmax weights over a few dozen keys, each with a multiplicity.

    q: N h d; k: M h d; counts: M float32, log of each key's multiplicity, minus infinity for an absent key.
    Returns N h·M in q's dtype, each head's weights contiguous; they sum to 1 over a head's keys.
    """
    queries, keys = q.transpose(0, 1), k.permute(1, 2, 0)
    if q.is_cuda and q.dtype in HALF_DTYPES:
        scores = torch.bmm(queries, keys, out_dtype=torch.float32)
    else:
        scores = queries.float() @ keys.float()
    weights = (scores * q.shape[-1] ** -0.5 + counts).softmax(dim=-1)
    return weights.transpose(0, 1).flatten(1).to(q.dtype)


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's attention, with PyTorch's choice of kernel; B N h d in and out."""
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2)
