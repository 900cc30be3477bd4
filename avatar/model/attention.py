"""The one entry to attention: the fastest kernel that the device has."""

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
# Module and the major compute capabilities whose kernels it ships: FlashAttention 4, then 3.
FLASH_MODULES = (("flash_attn.cute", (10,)), ("flash_attn_interface", (9,)))

# Of cuDNN's kernel. On an H200 at 3168 queries: 15312 keys 1.82 ms, but 15360, whole tiles, 1.69 ms.
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
    """The kernel for half precision on a CUDA device: FlashAttention where it is installed, else PyTorch's
    own."""
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
    """FlashAttention's function from the given module, giving the output alone."""
    flash = importlib.import_module(module).flash_attn_func

    def kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = flash(q, k, v)
        return out[0] if isinstance(out, tuple) else out  # some releases also return the log-sum-exp

    return kernel


def prioritised_sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's attention: cuDNN first where it is the fastest and works, then flash, then the rest."""
    priority = SDPA_PRIORITY if cudnn_first(q.device) else SDPA_PRIORITY[1:]
    with sdpa_kernel(priority, set_priority=True):
        return sdpa(q, k, v)


@functools.cache
def cudnn_first(device: torch.device) -> bool:
    """Whether cuDNN's attention is tried first: from Hopper on, where it was measured, and where it works."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < CUDNN_CAPABILITY:
        return False
    return has_cudnn_attention(device)


def attends_in_parts(q: Tensor) -> bool:
    """Whether attention_with_lse has a kernel for these queries, N h d, and nothing better is installed."""
    if not (q.is_cuda and q.dtype in HALF_DTYPES and kernel_for(q.device) is prioritised_sdpa):
        return False
    heads = q[None].transpose(1, 2)
    return cudnn_takes(heads) and cudnn_first(q.device)


def attention_with_lse(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """cuDNN's attention, N h d, and the logarithm of each query's sum of exponentials, h N float32."""
    q, k, v = (t[None].transpose(1, 2) for t in (q, k, v))
    out, lse = cudnn_attention(q, k, v)
    return out[0].transpose(0, 1), lse.reshape(q.shape[1:3])


def join_parts(
    q: Tensor, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], padding_key: Tensor, padding: int
) -> Tensor:
    """Attention to two sets of keys, each attended to apart, as if to both at once: N h d.

    The first set ends in copies of one of its own keys, as many as padding says, with values of zero; their
    part of the sum is taken out. Since that key is there itself, the rest never vanishes against it.
    first, second: as attention_with_lse gives them. padding_key: h d.
    """
    padded = (q.float() * padding_key.float()).sum(-1) * q.shape[-1] ** -0.5
    first_lse, second_lse = first[1].t(), second[1].t()
    top = torch.maximum(first_lse, second_lse)
    first_sum, second_sum = (first_lse - top).exp(), (second_lse - top).exp()
    total = first_sum + second_sum - padding * (padded - top).exp()
    out = first[0].float() * (first_sum / total).unsqueeze(-1)
    return (out + second[0].float() * (second_sum / total).unsqueeze(-1)).to(q.dtype)


def attention_weights(q: Tensor, k: Tensor) -> Tensor:
    """How much of each of a few keys every query takes: plain arithmetic that compiles into the code around.

    q: B N h d; k: B M h d. Returns B N M h in q's dtype; over the keys they sum to 1.
    """
    scores = (q.unsqueeze(2).float() * k.unsqueeze(1).float()).sum(-1) * q.shape[-1] ** -0.5
    return scores.softmax(dim=2).to(q.dtype)


def few_keys_weights(q: Tensor, k: Tensor, counts: Tensor) -> Tensor:
    """How much of each of some dozens of keys every query takes, each key counting as often as counts says.

    q: N h d; k: M h d; counts: M float32, logarithms, minus infinity for a key that is not there. Returns
    N h·M in q's dtype, a head's weights side by side; over a head's keys they sum to 1.
    """
    queries, keys = q.transpose(0, 1), k.permute(1, 2, 0)
    if q.is_cuda and q.dtype in HALF_DTYPES:
        scores = torch.bmm(queries, keys, out_dtype=torch.float32)
    else:
        scores = queries.float() @ keys.float()
    weights = (scores * q.shape[-1] ** -0.5 + counts).softmax(dim=-1)
    return weights.transpose(0, 1).flatten(1).to(q.dtype)


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's attention with its own choice of kernel; B N h d in and out."""
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2)
