"""8-bit products on the tensor cores, and which of them a device can do: each is tried once.

fp8 by fp8 is cuBLAS's; int8 by int8 is our own kernel's, for its scales are applied before it writes.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from importlib.util import find_spec
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from avatar.model.compile import constant_when_compiled
from avatar.model.device_checks import works
from avatar.model.quantize import FLOAT8, FLOAT8_CAPABILITY, INT8

logger = logging.getLogger(__name__)

TRIAL_SIDES = ((5120, 5120), (5120, 13824), (13824, 5120))  # of the products tried on each device
FEWEST_ROWS = 512  # of fp8; fewer are padded: on an H200, cuBLAS refused 16 scaled rows of 13824
TRIAL_ROWS = (FEWEST_ROWS, 3 * FEWEST_ROWS)
INT_MM_ROWS = 32  # of torch._int_mm, which refuses 16; fewer are padded
INT8_CAPABILITY = (8, 0)  # from here on, our kernel's products run on the tensor cores

Product = Literal["scaled", "kernel", "int_mm", "widened", "plain"]
ON_TENSOR_CORES: tuple[Product, ...] = ("scaled", "kernel", "int_mm")
Multiply = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


@constant_when_compiled
def product_on(device: torch.device, dtype: torch.dtype) -> Product:
    """How a device multiplies by weights in fp8 or int8.

    scaled: fp8 by fp8. kernel, int_mm: int8 by int8, by our own kernel or by PyTorch. widened: inputs stay
    in their dtype, and weights are widened to it. plain: float32 arithmetic on 8-bit values.
    """
    return _product(device, dtype)


@functools.cache
def _product(device: torch.device, dtype: torch.dtype) -> Product:
    """Cards since sm89 have fp8 cores, but not every cuBLAS supports row-wise scales on them.

    Source: pytorch/pytorch issue 192707.
    """
    if device.type != "cuda":
        return "plain"
    capability = torch.cuda.get_device_capability(device)
    if dtype == FLOAT8:
        if capability < FLOAT8_CAPABILITY:
            logger.info("fp8 weights are stored only: this GPU has no fp8 cores, products are in bf16")
            return "widened"
        return "scaled" if works("fp8", _try_float8, device) else "widened"
    assert dtype == INT8
    if capability >= INT8_CAPABILITY and works("int8", _try_kernel, device):
        return "kernel"
    return "int_mm" if works("int8", _try_int_mm, device) else "widened"


def multiply_float8(
    values: Tensor, scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor
) -> Tensor:
    """Product of R rows in fp8 by a weight in fp8, (out, in), to (R, out) bf16.

    scale: R 1 float32; weight_scale: (out) float32; bias: (out). Sums accumulate in the tensor cores' reduced
    precision, which is fastest.
    """
    num_rows = len(values)
    if num_rows < FEWEST_ROWS:
        rest = (0, 0, 0, FEWEST_ROWS - num_rows)
        values = F.pad(values.view(torch.uint8), rest).view(FLOAT8)
        # A copy, so that the padding is freed.
        return multiply_float8(values, F.pad(scale, rest), weight, weight_scale, bias)[:num_rows].clone()
    return torch._scaled_mm(
        values,
        weight.t(),
        scale_a=scale,
        scale_b=weight_scale[None],
        bias=bias.to(torch.bfloat16),
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )


def multiply_int8(
    values: Tensor, scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor
) -> Tensor:
    """The same in int8 by the device's fastest means; sums are exact."""
    by_kernel = product_on(values.device, INT8) == "kernel"
    multiply = multiply_by_kernel if by_kernel else multiply_by_int_mm
    return multiply(values, scale, weight, weight_scale, bias)


def linear_by_kernels(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor) -> Tensor:
    """A whole linear layer in int8 by our own kernels: rows in half precision to (R, out) bf16."""
    if torch.compiler.is_compiling():
        return _opaque_linear(x, weight, weight_scale, bias)
    from avatar.model.kernels.elementwise import quantised

    values, scale = quantised(x if x.stride(-1) == 1 else x.contiguous(), INT8)
    assert scale is not None
    return multiply_by_kernel(values, scale, weight, weight_scale, bias)


def multiply_by_kernel(
    values: Tensor, scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor
) -> Tensor:
    """multiply_int8 by our own kernel, which needs Triton."""
    from avatar.model.kernels.products import multiply

    return multiply(values, scale, weight, weight_scale, bias, torch.bfloat16)


def multiply_by_int_mm(
    values: Tensor, scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor
) -> Tensor:
    """multiply_int8 by PyTorch, which writes the sums before they are scaled."""
    num_rows = len(values)
    if num_rows < INT_MM_ROWS:
        values = F.pad(values, (0, 0, 0, INT_MM_ROWS - num_rows))
    sums = torch._int_mm(values, weight.t())[:num_rows]
    return (sums * scale * weight_scale + bias).to(torch.bfloat16)


def multiply_plainly(
    values: Tensor, scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor
) -> Tensor:
    """The reference of both formats: any rows R by (out, in), in float32."""
    return F.linear(values.float(), weight.float()) * scale * weight_scale + bias


@torch.library.custom_op("avatar::linear_int8", mutates_args=())
def _opaque_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor) -> Tensor:
    """linear_by_kernels as one operation of a compiled graph."""
    return linear_by_kernels(x, weight, weight_scale, bias)


@_opaque_linear.register_fake
def _(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(len(x), len(weight), dtype=torch.bfloat16)


def _try_float8(device: torch.device) -> None:
    _try(multiply_float8, FLOAT8, device)


def _try_kernel(device: torch.device) -> None:
    if find_spec("triton") is None:
        raise RuntimeError("Triton is not installed")
    _try(multiply_by_kernel, INT8, device)


def _try_int_mm(device: torch.device) -> None:
    _try(multiply_by_int_mm, INT8, device)


def _try(multiply: Multiply, dtype: torch.dtype, device: torch.device) -> None:
    """Try products of the published model's sizes, with FEWEST_ROWS and with more. Raises: RuntimeError."""
    for inputs, outputs in TRIAL_SIDES:
        weight = torch.ones(outputs, inputs, dtype=torch.bfloat16, device=device).to(dtype)
        scale, bias = torch.ones(outputs, device=device), torch.ones(outputs, device=device)
        for num_rows in TRIAL_ROWS:
            rows = torch.ones(num_rows, inputs, device=device).to(dtype)
            row_scale = torch.ones(num_rows, 1, device=device)
            out = multiply(rows, row_scale, weight, scale, bias.to(torch.bfloat16))
            if not torch.allclose(out, torch.full_like(out, inputs + 1), rtol=1e-2):
                raise RuntimeError("a product of 8-bit numbers is wrong")
