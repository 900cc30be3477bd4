"""Products of int8 on a GPU: our own kernel against exact sums, tiles, PyTorch's, compiled and eager."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from avatar.checkpoints.transformer_config import ModelConfig
from avatar.model import products_8bit
from avatar.model.kernels import products
from avatar.model.linear_8bit import Int8Linear
from avatar.model.products_8bit import multiply_by_int_mm, multiply_by_kernel, product_on
from avatar.model.quantize import INT8, hadamard, quantise_rows, quantise_weight

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0),
        reason="needs an NVIDIA GPU since Ampere",
    ),
]

CUDA = torch.device("cuda", 0)
DIM, FFN_DIM = ModelConfig().dim, ModelConfig().ffn_dim
SHAPES = [(DIM, 3 * DIM), (DIM, DIM), (DIM, FFN_DIM), (FFN_DIM, DIM)]
NUM_TOKENS = 3168  # of a block


def drawn(num_rows: int, width: int, outputs: int) -> tuple[Tensor, ...]:
    """Values, their scales, a weight, its scales, a bias."""
    draw = torch.Generator(CUDA).manual_seed(0)
    values, weight = (
        torch.randint(-127, 128, shape, dtype=INT8, device=CUDA, generator=draw)
        for shape in ((num_rows, width), (outputs, width))
    )
    scale = torch.rand(num_rows, 1, device=CUDA, generator=draw) / 127
    weight_scale = torch.rand(outputs, device=CUDA, generator=draw) / 127
    bias = torch.randn(outputs, device=CUDA, generator=draw).bfloat16()
    return values, scale, weight, weight_scale, bias


def exact(values: Tensor, scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor) -> Tensor:
    return values.double() @ weight.double().t() * scale.double() * weight_scale.double() + bias.double()


def apart(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def test_the_card_multiplies_by_our_own_kernel():
    assert product_on(CUDA, INT8) == "kernel"


@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernel_is_exact_at_full_size(shape: tuple[int, int]):
    given = drawn(NUM_TOKENS, *shape)
    expected = exact(*given)
    assert apart(products.multiply(*given, torch.float32), expected) < 1e-6
    found = multiply_by_kernel(*given)
    assert found.dtype == torch.bfloat16
    assert apart(found, expected) < 2**-8
    # A whole value of bf16 at most, where the float32 before it lies between two.
    assert ((found.double() - expected).abs() <= expected.abs() * 2**-8 + 1e-4).all()


@pytest.mark.parametrize("num_rows", [1, 15, 33, 512, 2640])
def test_the_kernel_takes_any_number_of_rows(num_rows: int):
    given = drawn(num_rows, DIM, DIM)
    assert apart(products.multiply(*given, torch.float32), exact(*given)) < 1e-6


@pytest.mark.parametrize("sides", [(16, 16), (48, 80), (208, 176), (1040, 4112)])
def test_the_kernel_takes_sides_that_fill_no_tile(sides: tuple[int, int]):
    given = drawn(77, *sides)
    assert apart(products.multiply(*given, torch.float32), exact(*given)) < 1e-6


def test_every_tile_gives_the_same_bits():
    given = drawn(NUM_TOKENS, DIM, DIM)
    first, *others = (
        products.multiply(*given, torch.bfloat16, tile)
        for tile in (*products.tiles_on(CUDA), products.Tile(64, 128, 64, 4, 3))
    )
    assert others
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("num_rows", [1, 15, NUM_TOKENS])
def test_pytorchs_product_gives_the_same(num_rows: int):
    given = drawn(num_rows, DIM, FFN_DIM)
    found, expected = multiply_by_int_mm(*given), multiply_by_kernel(*given)
    assert apart(found, expected.double()) < 2**-9


@pytest.mark.parametrize("means", ["kernel", "int_mm", "widened"])
def test_a_layer_compiled_and_eager(means: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(products_8bit, "_product", lambda device, dtype: means)
    draw = torch.Generator(CUDA).manual_seed(0)
    weight = torch.randn(FFN_DIM, DIM, device=CUDA, generator=draw) * DIM**-0.5
    linear = Int8Linear(*quantise_weight(weight, INT8), torch.zeros(FFN_DIM, device=CUDA).bfloat16())
    x = torch.randn(NUM_TOKENS, DIM, device=CUDA, generator=draw).bfloat16()
    expected = torch.nn.functional.linear(x.double(), weight.double())
    torch._dynamo.reset()
    for found in (linear(x), torch.compile(linear, fullgraph=True, dynamic=False)(x)):
        assert 0.005 < apart(found, expected) < 0.015  # 0.9 % of weights, as much again of inputs, bf16


def test_rows_quantised_on_the_card_are_those_of_the_reference():
    from avatar.model.kernels import elementwise

    x = torch.randn(NUM_TOKENS, FFN_DIM, device=CUDA).bfloat16()
    found, (values, scale) = elementwise.quantised(x, INT8), quantise_rows(hadamard(x), INT8)
    assert torch.allclose(found.scale, scale)
    differ = found.values.int() - values.int()
    assert differ.abs().max() <= 1
    assert (differ != 0).float().mean() < 1e-3  # halfway between two steps
