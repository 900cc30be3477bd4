"""Linear layers in 8 bits: one scale per output channel of the weights, one per token of activations.

Their products run at twice bf16's speed where the card has cores for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avatar.model.products_8bit import (
    ON_TENSOR_CORES,
    linear_by_kernels,
    multiply_float8,
    multiply_int8,
    multiply_plainly,
    product_on,
)
from avatar.model.quantize import FLOAT8, INT8, hadamard, is_quantised, quantise_rows, quantise_weight, widen


class QuantisedLinear(nn.Module):
    """A linear layer with 8-bit weights. weight: (out, in). scale: (out) float32. bias: (out), any dtype.

    Inputs and outputs have the dtype of the residual stream.
    """

    format: ClassVar[torch.dtype]

    weight: nn.Parameter
    bias: nn.Parameter
    scale: Tensor

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.register_buffer("scale", scale)

    def multiplies_on(self, device: torch.device) -> bool:
        """Whether a device multiplies inputs in the weight's dtype, rather than in a wider one."""
        return product_on(device, self.format) in ON_TENSOR_CORES

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out), with the device's best kind of product."""
        product, rows = product_on(x.device, self.format), x.reshape(-1, x.shape[-1])
        if product == "kernel":
            out = linear_by_kernels(rows, self.weight, self.scale, self.bias)
        elif product == "widened":
            rows = self.entering(rows).to(x.dtype)
            out = F.linear(rows, self.widened(x.dtype)) * self.scale + self.bias
        else:
            values, scale = quantise_rows(self.entering(rows), self.format)
            if product == "plain":
                out = multiply_plainly(values, scale, self.weight, self.scale, self.bias)
            else:
                out = self.multiply(values, scale)
        return out.to(x.dtype).unflatten(0, x.shape[:-1])

    def entering(self, rows: Tensor) -> Tensor:
        """Rows as they are quantised, which int8's are once they are rotated."""
        return rows

    def multiply(self, values: Tensor, scale: Tensor) -> Tensor:
        """8-bit product on the tensor cores: R rows in the weight's dtype, scales R 1, to (R, out) bf16."""
        raise NotImplementedError

    def widened(self, dtype: torch.dtype) -> Tensor:
        """The weight in a wider dtype, unscaled; exact."""
        raise NotImplementedError


class Float8Linear(QuantisedLinear):
    """A linear layer with weights in e4m3."""

    format = FLOAT8

    def multiply(self, values: Tensor, scale: Tensor) -> Tensor:
        """See QuantisedLinear."""
        return multiply_float8(values, scale, self.weight, self.scale, self.bias)

    def widened(self, dtype: torch.dtype) -> Tensor:
        """See QuantisedLinear."""
        return widen(self.weight, dtype)


class Int8Linear(QuantisedLinear):
    """A linear layer with weights in int8, rotated along their input channels; see quantize.hadamard."""

    format = INT8

    def entering(self, rows: Tensor) -> Tensor:
        """See QuantisedLinear."""
        return hadamard(rows)

    def multiply(self, values: Tensor, scale: Tensor) -> Tensor:
        """See QuantisedLinear."""
        return multiply_int8(values, scale, self.weight, self.scale, self.bias)

    def widened(self, dtype: torch.dtype) -> Tensor:
        """See QuantisedLinear."""
        return self.weight.to(dtype)


LINEARS: dict[torch.dtype, type[QuantisedLinear]] = {kind.format: kind for kind in (Float8Linear, Int8Linear)}


def join_linears(parts: Sequence[nn.Module]) -> nn.Module:
    """Join linear layers of the same input into one with concatenated outputs; all quantised, or none."""
    weight, bias = (torch.cat([getattr(part, leaf) for part in parts]) for leaf in ("weight", "bias"))
    if all(isinstance(part, QuantisedLinear) for part in parts):
        return LINEARS[weight.dtype](weight, torch.cat([part.get_buffer("scale") for part in parts]), bias)
    joined = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    joined.weight, joined.bias = (nn.Parameter(value, requires_grad=False) for value in (weight, bias))
    return joined


class Quantiser:
    """Quantise a model while it is loaded: pass `place` to the loader, then call `install`.

    Each weight is quantised as it is read, so the device never holds more than one in the wider dtype.
    """

    def __init__(self, dtype: torch.dtype = FLOAT8, scales: dict[str, Tensor] | None = None) -> None:
        """dtype: of quantised weights. scales: by name, for those that are already quantised in the file."""
        self.dtype = dtype
        self.scales = dict(scales or {})

    def place(self, name: str, tensor: Tensor) -> nn.Parameter | None:
        """See model.weights.loading.Place."""
        if not is_quantised(name, tensor.shape):
            return None
        if tensor.dtype != self.dtype:
            tensor, self.scales[name] = quantise_weight(tensor, self.dtype)
        return nn.Parameter(tensor, requires_grad=False)

    def install(self, model: nn.Module) -> None:
        """Replace every layer whose weight was placed by a quantised one; call once, before fusing."""
        for name, scale in self.scales.items():
            module_name = name.removesuffix(".weight")
            linear = model.get_submodule(module_name)
            assert isinstance(linear, nn.Linear)
            kind = LINEARS[self.dtype]
            model.set_submodule(module_name, kind(linear.weight.data, scale, linear.bias.data))
        self.scales.clear()
