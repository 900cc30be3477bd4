"""Numbers in 8 bits: rows of weights and of activations, each with the scale that restores it.

fp8 is e4m3, whose exponents cope with a few channels that are far larger than the others. int8's even steps
do not: both sides of its products are rotated first, which spreads every channel over many and changes no
product. Source: QuaRot, arXiv 2404.00456 (Hadamard rotation).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from avatar.model.compile import constant_when_compiled
from avatar.model.weights.lora import is_target

FLOAT8, INT8 = torch.float8_e4m3fn, torch.int8
LARGEST = torch.finfo(FLOAT8).max  # 448
INT8_LARGEST = 127.0  # -128 is not used
TINIEST = 1e-12  # a row whose largest value is smaller counts as zero
ADALN = ".injector_adain_layers."
SIDE_MULTIPLE = 16  # 8-bit products require both sides of a weight to be multiples of this
FLOAT8_CAPABILITY = (8, 9)  # from here on, cards have fp8 cores and Triton converts e4m3
ROTATION_BLOCKS = (256, 16)  # channels that are rotated together: the first that divides a row
CHUNK_ROWS = 1024  # quantised at a time, to keep float32's peak memory low


def is_quantised(name: str, shape: Sequence[int]) -> bool:
    """Whether a tensor of the transformer is kept in 8 bits: the large weights, 98 % of all parameters.

    Those are the layers that the LoRA adapts (attention and feed-forward) and the audio injections' AdaLN,
    which contributes less than 2 % of the squared error. Embeddings, the head, norms, modulation and the
    audio encoder are not quantised.
    """
    if any(side % SIDE_MULTIPLE for side in shape):
        return False
    return is_target(name, tuple(shape)) or (ADALN in name and name.endswith(".weight"))


def quantise_rows(values: Tensor, dtype: torch.dtype = FLOAT8) -> tuple[Tensor, Tensor]:
    """Quantise each row with the scale that restores it; its largest value becomes 448 in e4m3, 127 in int8.

    e4m3's mantissa has steps of 1/8, so the error of a value m·2^e, 1 <= m < 2, is at most 2^e/16, and
    2^e/8/sqrt(12) RMS: at most 3.6 % of a tensor's norm, 2.65 % for normally distributed values, whatever the
    scale. Values below 2^-15 of their row's largest keep fewer bits.
    int8's steps are even: the error is 1/254 of the row's largest value at most, and that over sqrt(3) RMS;
    for 5120 normally distributed values, whose largest is 3.9 of their RMS, 0.9 % of the norm.
    values: ... R C. Returns ... R C in dtype and ... R 1 float32.
    """
    bound = INT8_LARGEST if dtype == INT8 else LARGEST
    largest = values.abs().amax(dim=-1, keepdim=True).float().clamp(min=TINIEST)
    scaled = values.float() * (bound / largest)
    if dtype == INT8:
        return scaled.round().to(INT8), largest / bound
    return scaled.to(FLOAT8) if compiles_float8(values.device) else narrow(scaled), largest / bound


def hadamard(values: Tensor) -> Tensor:
    """Rotate each row's blocks of 4^n channels by a Hadamard matrix: ... C to ... C float32.

    The matrix is the n-th Kronecker power of half of [[-1, 1, 1, 1], [1, -1, 1, 1], ...]: n times, of each
    four values, half their sum minus each. It is symmetric, its own inverse, and its rows have equal sums:
    what a block's channels have in common does not gather in one of them. Computed by additions in a fixed
    order, so that all devices give the same bits.
    """
    block, stride, out = rotation_block(values.shape[-1]), 1, values.float()
    while stride < block:
        fours = out.unflatten(-1, (-1, 4, stride))
        a, b, c, d = fours.unbind(-2)
        out = (0.5 * ((a + b) + (c + d)).unsqueeze(-2) - fours).flatten(-3)
        stride *= 4
    return out


def rotation_block(width: int) -> int:
    """How many channels of a row are rotated together; a row is a multiple of SIDE_MULTIPLE."""
    return next(block for block in ROTATION_BLOCKS if width % block == 0)


def widen_rows(values: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Undo quantise_rows, except for its rounding: ... R C float8, ... R 1, to ... R C in the given dtype."""
    wide = values.float() if compiles_float8(values.device) else widen(values, torch.bfloat16).float()
    return (wide * scale).to(dtype)


def quantise_weight(weight: Tensor, dtype: torch.dtype = FLOAT8) -> tuple[Tensor, Tensor]:
    """Quantise a weight, one scale per output channel: returns (out, in) in dtype, (out) float32.

    In int8 its rows are rotated, and so must be what it is multiplied by; see hadamard.
    """
    quantised = torch.empty_like(weight, dtype=dtype)
    scale = torch.empty(len(weight), dtype=torch.float32, device=weight.device)
    chunks = (tensor.split(CHUNK_ROWS) for tensor in (weight, quantised, scale))
    for source, target, target_scale in zip(*chunks, strict=True):
        values, scales = quantise_rows(hadamard(source) if dtype == INT8 else source, dtype)
        target.copy_(values)
        target_scale.copy_(scales[:, 0])
    return quantised, scale


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
