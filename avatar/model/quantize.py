"""Linear layers in fp8 (e4m3): one scale per output channel of the weights, one per token of activations.

They take half of bf16's bytes, and their products run at twice its speed where the card has fp8 cores.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avatar.model.compile import constant_when_compiled
from avatar.model.device_checks import works
from avatar.model.weights.lora import is_target

logger = logging.getLogger(__name__)

FLOAT8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FLOAT8).max  # 448
TINIEST = 1e-12  # a row whose largest value is smaller counts as zero
ADALN = ".injector_adain_layers."
SIDE_MULTIPLE = 16  # the fp8 product requires both sides of a weight to be multiples of this
TRIAL_SIDES = ((5120, 5120), (5120, 13824), (13824, 5120))  # of the products tried on each device
FEWEST_ROWS = 512  # fewer are padded: on an H200, cuBLAS refused 16 scaled rows of 13824
TRIAL_ROWS = (FEWEST_ROWS, 3 * FEWEST_ROWS)
FLOAT8_CAPABILITY = (8, 9)  # from here on, cards have fp8 cores and Triton converts e4m3
CHUNK_ROWS = 1024  # quantised at a time, to keep float32's peak memory low

Product = Literal["scaled", "widened", "plain"]


def is_quantised(name: str, shape: Sequence[int]) -> bool:
    """Whether a tensor of the transformer is kept in fp8: the large weights, 98 % of all parameters.

    Those are the layers that the LoRA adapts (attention and feed-forward) and the audio injections' AdaLN,
    which contributes less than 2 % of the squared error. Embeddings, the head, norms, modulation and the
    audio encoder are not quantised.
    """
    if any(side % SIDE_MULTIPLE for side in shape):
        return False
    return is_target(name, tuple(shape)) or (ADALN in name and name.endswith(".weight"))


def quantise_rows(values: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise each row to e4m3 with the scale that restores it; the row's largest value becomes 448.

    e4m3's mantissa has steps of 1/8, so the error of a value m·2^e, 1 <= m < 2, is at most 2^e/16, and
    2^e/8/sqrt(12) RMS: at most 3.6 % of a tensor's norm, 2.65 % for normally distributed values, whatever the
    scale. Values below 2^-15 of their row's largest keep fewer bits.
    values: ... R C. Returns ... R C float8 and ... R 1 float32.
    """
    largest = values.abs().amax(dim=-1, keepdim=True).float().clamp(min=TINIEST)
    scaled = values.float() * (LARGEST / largest)
    return scaled.to(FLOAT8) if compiles_float8(values.device) else narrow(scaled), largest / LARGEST


def widen_rows(values: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Undo quantise_rows, except for its rounding: ... R C float8, ... R 1, to ... R C in the given dtype."""
    wide = values.float() if compiles_float8(values.device) else widen(values, torch.bfloat16).float()
    return (wide * scale).to(dtype)


def quantise_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise a weight to e4m3, one scale per output channel: returns (out, in) float8, (out) float32."""
    quantised = torch.empty_like(weight, dtype=FLOAT8)
    scale = torch.empty(len(weight), dtype=torch.float32, device=weight.device)
    chunks = (tensor.split(CHUNK_ROWS) for tensor in (weight, quantised, scale))
    for source, target, target_scale in zip(*chunks, strict=True):
        values, scales = quantise_rows(source)
        target.copy_(values)
        target_scale.copy_(scales[:, 0])
    return quantised, scale


class QuantisedLinear(nn.Module):
    """A linear layer with 8-bit weights. weight: (out, in). scale: (out) float32. bias: (out), any dtype.

    Inputs and outputs have the dtype of the residual stream.
    """

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
        raise NotImplementedError

    def multiply(self, values: Tensor, scale: Tensor) -> Tensor:
        """8-bit product on the tensor cores: R rows in the weight's dtype, scales R 1, to (R, out) bf16."""
        raise NotImplementedError


class Float8Linear(QuantisedLinear):
    """A linear layer with weights in e4m3."""

    def multiplies_on(self, device: torch.device) -> bool:
        """See QuantisedLinear."""
        return product_on(device) == "scaled"

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out), with the device's best kind of product."""
        product = product_on(x.device)
        if product == "widened":
            return (F.linear(x, widen(self.weight, x.dtype)) * self.scale + self.bias).to(x.dtype)
        rows = x.reshape(-1, x.shape[-1])
        values, scale = quantise_rows(rows)
        if product == "scaled":
            out = self.multiply(values, scale)
        else:
            out = F.linear(values.float(), self.weight.float()) * scale * self.scale + self.bias
        return out.to(x.dtype).unflatten(0, x.shape[:-1])

    def multiply(self, values: Tensor, scale: Tensor) -> Tensor:
        """See QuantisedLinear. Sums accumulate in the tensor cores' reduced precision, which is fastest."""
        num_rows = len(values)
        if num_rows < FEWEST_ROWS:
            rest = (0, 0, 0, FEWEST_ROWS - num_rows)
            values = F.pad(values.view(torch.uint8), rest).view(FLOAT8)
            # A copy, so that the padding is freed.
            return self.multiply(values, F.pad(scale, rest))[:num_rows].clone()
        return torch._scaled_mm(
            values,
            self.weight.t(),
            scale_a=scale,
            scale_b=self.scale[None],
            bias=self.bias.to(torch.bfloat16),
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )


@torch.library.custom_op("avatar::widen", mutates_args=())
def widen(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """fp8 to a wider dtype, unscaled, exact; opaque to the compiler, as Triton lacks e4m3 before sm89.

    Source: pytorch/pytorch issue 167082.
    """
    return weight.to(dtype)


@widen.register_fake
def _(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(weight, dtype=dtype)


@torch.library.custom_op("avatar::narrow", mutates_args=())
def narrow(values: Tensor) -> Tensor:
    """To fp8, rounded to nearest; opaque to the compiler for the same reason as widen."""
    return values.to(FLOAT8)


@narrow.register_fake
def _(values: Tensor) -> Tensor:
    return torch.empty_like(values, dtype=FLOAT8)


@constant_when_compiled
def compiles_float8(device: torch.device) -> bool:
    """Whether compiled code may convert to and from fp8 on a device."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= FLOAT8_CAPABILITY


@constant_when_compiled
def product_on(device: torch.device) -> Product:
    """How a device multiplies: fp8 by fp8 on its tensor cores, in the wider dtype, or by plain arithmetic."""
    return _product(device)


@functools.cache
def _product(device: torch.device) -> Product:
    """Tried once: cards since sm89 have fp8 cores, but not every cuBLAS supports row-wise scales on them.

    Source: pytorch/pytorch issue 192707.
    """
    if device.type != "cuda":
        return "plain"
    if torch.cuda.get_device_capability(device) < FLOAT8_CAPABILITY:
        logger.info("fp8 weights are stored only: this GPU has no fp8 cores, products are in bf16")
        return "widened"
    return "scaled" if works("fp8", _try_products, device) else "widened"


def _try_products(device: torch.device) -> None:
    """Try products of the published model's sizes, with FEWEST_ROWS and with more. Raises: RuntimeError."""
    for inputs, outputs in TRIAL_SIDES:
        weight = torch.ones(outputs, inputs, dtype=torch.bfloat16, device=device).to(FLOAT8)
        scale, bias = torch.ones(outputs, device=device), torch.ones(outputs, device=device)
        linear = Float8Linear(weight, scale, bias.to(torch.bfloat16))
        for num_rows in TRIAL_ROWS:
            rows = torch.ones(num_rows, inputs, device=device).to(FLOAT8)
            out = linear.multiply(rows, torch.ones(num_rows, 1, device=device))
            if not torch.allclose(out, torch.full_like(out, inputs + 1), rtol=1e-2):
                raise RuntimeError("a product of 8-bit numbers is wrong")


def join_linears(parts: Sequence[nn.Module]) -> nn.Module:
    """Join linear layers of the same input into one with concatenated outputs; all quantised, or none."""
    weight, bias = (torch.cat([getattr(part, leaf) for part in parts]) for leaf in ("weight", "bias"))
    if all(isinstance(part, Float8Linear) for part in parts):
        return Float8Linear(weight, torch.cat([part.get_buffer("scale") for part in parts]), bias)
    joined = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    joined.weight, joined.bias = (nn.Parameter(value, requires_grad=False) for value in (weight, bias))
    return joined


class Quantiser:
    """Quantise a model while it is loaded: pass `place` to the loader, then call `install`.

    Each weight is quantised as it is read, so the device never holds more than one in the wider dtype.
    """

    def __init__(self, scales: dict[str, Tensor] | None = None) -> None:
        """scales: by weight name, for weights that are already quantised in the file."""
        self.scales = dict(scales or {})

    def place(self, name: str, tensor: Tensor) -> nn.Parameter | None:
        """See model.weights.loading.Place."""
        if not is_quantised(name, tensor.shape):
            return None
        if tensor.dtype != FLOAT8:
            tensor, self.scales[name] = quantise_weight(tensor)
        return nn.Parameter(tensor, requires_grad=False)

    def install(self, model: nn.Module) -> None:
        """Replace every layer whose weight was placed by a Float8Linear; call once, before fusing."""
        for name, scale in self.scales.items():
            module_name = name.removesuffix(".weight")
            linear = model.get_submodule(module_name)
            assert isinstance(linear, nn.Linear)
            model.set_submodule(module_name, Float8Linear(linear.weight.data, scale, linear.bias.data))
        self.scales.clear()
