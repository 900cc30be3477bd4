"""Which of our kernels a device can run: each is tried once and compared with its reference; see works()."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

from avatar.geometry import Geometry
from avatar.model import attention_8bit
from avatar.model.attention_8bit import Calibration, EightBitRing, EightBitWindow, Queries
from avatar.model.device_checks import works
from avatar.model.kv_cache import KeysValues
from avatar.model.quantize import FLOAT8_CAPABILITY

logger = logging.getLogger(__name__)

TRIAL = Geometry(128, 64, 8)  # a small frame whose condition ends in a partly filled slot
LARGEST_DIFFERENCE = 0.02  # relative to the norm: values may round to e4m3 differently


@dataclass(frozen=True)
class EightBitKernels:
    """The functions that compute 8-bit attention; by default the reference ones in attention_8bit."""

    attend: Callable[..., Tensor] = attention_8bit.attend
    quantise_heads: Callable[[Tensor], Queries] = attention_8bit.quantise_heads
    write: Callable[..., None] = attention_8bit.write


@functools.cache
def eight_bit_on(device: torch.device, num_heads: int, head_dim: int) -> EightBitKernels | None:
    """A device's kernels for 8-bit attention: the reference on a CPU, None where a GPU's do not work."""
    if device.type != "cuda":
        return EightBitKernels()
    if torch.cuda.get_device_capability(device) < FLOAT8_CAPABILITY:
        logger.info("attention runs in bf16, over rings in fp8: this GPU has no fp8 cores")
        return None
    trial = functools.partial(_try_attention, num_heads, head_dim)
    return _eight_bit_kernels() if works("attention", trial, device) else None


@functools.cache
def fused_on(device: torch.device) -> bool:
    """Whether a layer's pieces run as our own kernels on a device; otherwise PyTorch compiles them."""
    return device.type == "cuda" and works("kernels", _try_elementwise, device)


def _eight_bit_kernels() -> EightBitKernels:
    """Our own. Raises: RuntimeError without Triton."""
    _require_triton()
    from avatar.model.kernels import attention, qkv

    return EightBitKernels(attention.attend, qkv.quantise_queries, qkv.write)


def _try_attention(num_heads: int, head_dim: int, device: torch.device) -> None:
    """Compare our own 8-bit attention with its reference. Raises: whatever compiler or driver raises."""
    _require_close(_difference(_eight_bit_kernels(), device, num_heads, head_dim))


def _try_elementwise(device: torch.device) -> None:
    """Compare our own residual and norm with PyTorch's. Raises: whatever compiler or driver raises."""
    _require_triton()
    from avatar.model.kernels import elementwise

    x = torch.randn(16, 1024, device=device, dtype=torch.bfloat16)
    vector = torch.randn(1024, device=device)
    fresh, after = elementwise.added_and_normed(
        x, x, vector, vector, vector, 1e-6, torch.bfloat16, plus_one=True
    )
    expected = x.float() + x.float() * vector
    normed = torch.nn.functional.layer_norm(expected, (1024,), eps=1e-6) * (1 + vector) + vector
    pairs = ((fresh, expected), (after.values, normed))
    _require_close(max(_relative(found, right) for found, right in pairs))


def _require_triton() -> None:
    if find_spec("triton") is None:
        raise RuntimeError("Triton is not installed")


def _require_close(difference: float) -> None:
    """Raises: RuntimeError also for a difference that is not a number."""
    if not difference < LARGEST_DIFFERENCE:
        raise RuntimeError(f"the result is off by {difference:.1%}")


def _difference(kernels: EightBitKernels, device: torch.device, num_heads: int, head_dim: int) -> float:
    """How far the kernels' attention is from the reference, relative to the latter's norm."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, past_k, past_v = (
        torch.randn(TRIAL.block_tokens, num_heads, head_dim, generator=generator).to(device, torch.bfloat16)
        for _ in range(5)
    )
    condition = KeysValues(k[: TRIAL.condition_tokens], v[: TRIAL.condition_tokens])
    calibration = Calibration.of(KeysValues(k, v), condition)
    results = []
    for each in (kernels, EightBitKernels()):
        window = EightBitWindow(TRIAL, num_heads, head_dim, device)
        ring = EightBitRing.empty(TRIAL, num_heads, head_dim, device)
        each.write(window.own, KeysValues(past_k, past_v), calibration)
        ring.append(window.own)
        each.write(window.own, KeysValues(k, v), calibration)
        each.write(window.condition, condition, calibration)
        parts = [window.near, ring.past()]
        results.append(each.attend(each.quantise_heads(q), parts, calibration, torch.bfloat16))
    return _relative(*results)


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())
