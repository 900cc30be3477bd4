"""fp8 linear layers against a slow twin, their error against its bounds, alone and in the whole model."""

from __future__ import annotations

import re
import shutil
import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._inductor.utils import run_and_get_code

from avatar.checkpoints.transformer_config import ModelConfig
from avatar.model import linear_8bit, products_8bit
from avatar.model.linear_8bit import Float8Linear, Int8Linear, Quantiser, join_linears
from avatar.model.quantize import FLOAT8, INT8, is_quantised, quantise_rows, quantise_weight
from avatar.model.transformer import StreamingTransformer, held_dtype
from avatar.model.transformer_layer import modulate
from avatar.model.weights.checkpoint import open_checkpoint
from avatar.model.weights.loading import load_transformer
from avatar.model.weights.random_weights import random_transformer
from avatar.model.weights.tiny import CONFIG
from avatar.pipeline.denoiser import LocalDenoiser
from avatar.pipeline.layer_stack import CompiledPieces
from tests.pipeline.streams import Stream, relative_error

NORMAL = 0.0265  # of normal values; see quantise_rows
WORST = 2**-3 / 12**0.5


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear(in_features: int = 96, out_features: int = 48, seed: int = 0) -> nn.Linear:
    layer = nn.Linear(in_features, out_features).requires_grad_(False)
    layer.weight.copy_(random(out_features, in_features, seed=seed))
    layer.bias.copy_(random(out_features, seed=seed + 1))
    return layer


def int8(layer: nn.Linear) -> Int8Linear:
    return Int8Linear(*quantise_weight(layer.weight, INT8), layer.bias)


def float8(layer: nn.Linear) -> Float8Linear:
    return Float8Linear(*quantise_weight(layer.weight), layer.bias)


def slow_rows(values: Tensor) -> Tensor:
    """Every value to the nearest of e4m3's 253, in float64, ties to even; row by row."""
    codes = torch.arange(256, dtype=torch.uint8).view(FLOAT8).double()
    ladder = codes[:127]  # codes of one sign rise; the last is no number
    rounded = torch.empty(values.shape, dtype=torch.float64)
    for source, target in zip(values.double(), rounded, strict=True):
        scale = source.abs().max() / 448
        place = (source.abs() / scale)[:, None]
        away = (place - ladder).abs()
        near = away.min(dim=1, keepdim=True).values
        is_tie = away <= near * (1 + 1e-9)
        even = torch.arange(127) % 2 == 0
        code = torch.where(is_tie, torch.where(even, 2, 1), 0).argmax(dim=1)
        target.copy_(ladder[code] * scale * source.sign())
    return rounded


def slow_twin(layer: nn.Linear, x: Tensor) -> Tensor:
    """Both sides rounded as the fast layer rounds them, the rest in float64."""
    return slow_rows(x) @ slow_rows(layer.weight).T + layer.bias.double()


def test_rows_equal_the_nearest_values_of_e4m3():
    values = random(7, 200) * torch.logspace(-6, 6, 7)[:, None]
    quantised, scale = quantise_rows(values)
    assert quantised.dtype == FLOAT8
    assert scale.shape == (7, 1)
    assert relative_error(quantised.double() * scale, slow_rows(values)) < 1e-6


def test_a_rows_largest_value_is_kept_and_zeros_stay_zero():
    values = torch.tensor([[3.0, -0.5, 0.0], [0.0, 0.0, 0.0], [1e-30, 0.0, -1e30]])
    quantised, scale = quantise_rows(values)
    restored = quantised.float() * scale
    assert torch.allclose(restored.abs().amax(dim=1), values.abs().amax(dim=1))
    assert restored.isfinite().all()
    assert not restored[1].any()


@pytest.mark.parametrize("rows", [5, 1024, 1500])
def test_chunks_of_a_weight_equal_all_at_once(rows):
    weight = random(rows, 32)
    (weights, scale), (expected, scales) = quantise_weight(weight), quantise_rows(weight)
    assert torch.equal(weights.view(torch.uint8), expected.view(torch.uint8))
    assert torch.equal(scale, scales[:, 0])


@pytest.mark.parametrize("shape", [(1, 96), (33, 96), (3, 5, 96)])
def test_a_layer_equals_its_slow_twin(shape):
    layer = linear()
    x = random(*shape, seed=5)
    found = float8(layer)(x)
    assert found.shape == (*shape[:-1], 48)
    assert relative_error(found, slow_twin(layer, x.reshape(-1, 96)).view_as(found)) < 1e-6


def test_output_has_the_residual_streams_dtype():
    layer, x = linear().bfloat16(), random(9, 96).bfloat16()
    found = float8(layer)(x)
    assert found.dtype == torch.bfloat16
    assert relative_error(found, float8(layer.float())(x.float())) < 2**-9  # its own rounding


def test_a_card_without_fp8_multiplies_the_exact_input(monkeypatch):
    """Only the weights' error is left; rows of the weight are as the slow twin rounds them."""
    monkeypatch.setattr(linear_8bit, "product_on", lambda device, dtype: "widened")
    layer, x = linear(), random(33, 96, seed=5)
    expected = x.double() @ slow_rows(layer.weight).T + layer.bias.double()
    assert relative_error(float8(layer)(x), expected) < 1e-6


def test_error_of_weights_and_of_products():
    """Normal weights: 2.65 %. A product of independent errors on both sides: sqrt(2) times that."""
    layer, x = linear(2048, 512), random(64, 2048, seed=9)
    weight, scale = quantise_weight(layer.weight)
    error = relative_error(weight.float() * scale[:, None], layer.weight)
    assert error == pytest.approx(NORMAL, rel=0.02)
    layer.bias.zero_()
    assert relative_error(float8(layer)(x), layer(x)) == pytest.approx(2**0.5 * error, rel=0.05)


def test_no_value_moves_by_more_than_a_sixteenth_of_itself():
    """Down to 2^-14 of its row's largest, below which e4m3 has fewer bits; WORST is the bound of the norm."""
    values = torch.logspace(-14, 0, 100_000, base=2.0)[None]
    quantised, scale = quantise_rows(values)
    moved = (quantised.float() * scale - values).abs()
    assert float((moved / values).max()) <= 2**-4
    assert relative_error(quantised.float() * scale, values) < WORST


def test_channels_and_tokens_of_any_size_lose_no_more_than_others():
    """What a scale for each channel and token is for."""
    layer, x = linear(512, 64), random(32, 512, seed=9)
    layer.bias.zero_()
    sizes, tokens = torch.logspace(-6, 3, 64), torch.logspace(-3, 6, 32)
    plain = float8(layer)(x)
    layer.weight.mul_(sizes[:, None])
    assert relative_error(float8(layer)(x * tokens[:, None]) / sizes / tokens[:, None], plain) < 0.02


def test_joined_layers_give_their_outputs_side_by_side():
    parts, x = [linear(seed=seed) for seed in range(3)], random(9, 96, seed=7)
    for kind in (lambda layer: layer, float8, int8):
        layers = [kind(part) for part in parts]
        expected = torch.cat([layer(x) for layer in layers], dim=-1)
        joined = join_linears(layers)
        assert type(joined) is type(layers[0])
        assert relative_error(joined(x), expected) < 1e-6


def test_which_layers_are_quantised():
    """All big products, nothing else; 98 % of the real model's parameters."""
    with torch.device("meta"):
        shapes = {n: v.shape for n, v in StreamingTransformer(ModelConfig()).state_dict().items()}
    names = {name for name, shape in shapes.items() if is_quantised(name, shape)}
    attentions = [f"blocks.{i}.{kind}_attn" for i in range(40) for kind in ("self", "cross")]
    attentions += [f"audio_injector.injector.{i}" for i in range(12)]
    expected = {f"{attention}.{part}.weight" for attention in attentions for part in "qkvo"}
    expected |= {f"blocks.{i}.ffn.{j}.weight" for i in range(40) for j in (0, 2)}
    expected |= {f"audio_injector.injector_adain_layers.{i}.linear.weight" for i in range(12)}
    assert names == expected
    counts = {name: shape.numel() for name, shape in shapes.items()}
    assert sum(counts[name] for name in names) / sum(counts.values()) == pytest.approx(0.978, abs=0.001)
    assert not is_quantised("blocks.0.ffn.0.weight", (72, 64))  # the fp8 product cannot take it


def quantised_model(
    stream: Stream, part: str = "", dtype: torch.dtype = torch.float32, format: torch.dtype = FLOAT8
) -> StreamingTransformer:
    """A stream's model with those layers in 8 bits whose names contain a word."""
    model, quantiser = stream.transformer(dtype, fuse=False), Quantiser(format)
    for name, tensor in model.state_dict().items():
        placed = quantiser.place(name, tensor) if part in name else None
        if placed is not None:
            model.get_submodule(name.removesuffix(".weight")).weight = placed
    quantiser.install(model)
    return model.fuse()


def velocity_error(stream: Stream, denoiser: LocalDenoiser) -> float:
    """The largest of all blocks and steps; the latents they lead to must be as near."""
    latents = stream.run(denoiser)
    expected = stream.tensors["velocities"].flatten(0, 1)
    errors = [relative_error(v, e) for v, e in zip(denoiser.schedule.velocities, expected, strict=True)]
    assert relative_error(latents, stream.tensors["latents"]) < max(errors)
    return max(errors)


@pytest.mark.parametrize("name", ["basic", "two_speakers"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_velocities_of_the_golden_streams(name, dtype):
    """Each velocity stays within 5 % of the published code's; measured: 3.9 % at most.

    Eight products stand in a row in a layer: self-attention's values and output, cross-attention's, two of
    the feed-forward, the audio's values and output. Were each to replace the residual, three layers'
    independent roundings of weights and inputs would make sqrt(48) · 2.65 % = 18 %; but results are added to
    the residual, and attention averages its values. Weights and inputs have the same share in it.
    """
    stream = Stream.load(name)
    error = velocity_error(stream, stream.denoiser(quantised_model(stream, dtype=dtype)))
    assert 0.01 < error < 0.05


def test_weights_and_activations_have_the_same_share_of_the_error(monkeypatch):
    """Errors are independent: their squares add up."""
    stream = Stream.load("basic")
    both = velocity_error(stream, stream.denoiser(quantised_model(stream)))
    monkeypatch.setattr(linear_8bit, "product_on", lambda device, dtype: "widened")
    weights = velocity_error(stream, stream.denoiser(quantised_model(stream)))
    assert weights == pytest.approx(both / 2**0.5, rel=0.15)


def test_the_error_is_the_sum_of_its_parts():
    """No layer is far more sensitive than the others: none of the parts makes more than half of the error."""
    stream = Stream.load("basic")
    both = velocity_error(stream, stream.denoiser(quantised_model(stream)))
    parts = ("self_attn", "cross_attn", "ffn.0", "ffn.2", "injector.", "adain")
    errors = [velocity_error(stream, stream.denoiser(quantised_model(stream, part))) for part in parts]
    assert errors[-1] ** 2 < 0.02 * both**2  # AdaLN's
    assert sum(error**2 for error in errors) ** 0.5 == pytest.approx(both, rel=0.15)
    assert max(errors) < both * 0.75


@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a C++ compiler on a CPU")
def test_quantising_joins_the_kernel_before_it():
    """Norm, modulation and quantising: one kernel; then the product, and what scales its result: another."""
    layer, vectors = float8(linear(128, 64)), random(2, 128)

    def project(x: Tensor) -> Tensor:
        return layer(modulate(x, *vectors, eps=1e-6))

    torch._dynamo.reset()
    x = random(64, 128)
    found, (code,) = run_and_get_code(torch.compile(project, fullgraph=True, dynamic=False), x)
    body = code[code.index("def call(") :]
    calls = re.findall(r"^ +(cpp_fused|extern_kernels)", body, flags=re.MULTILINE)
    assert calls == ["cpp_fused", "extern_kernels", "cpp_fused"]
    assert relative_error(found, project(x)) < 1e-2  # a value between two steps may go to either


@pytest.mark.parametrize("product", ["plain", "widened"])
def test_compiled_equals_eager_in_no_more_graphs(product, monkeypatch):
    monkeypatch.setattr(products_8bit, "_product", lambda device, dtype: product)
    stream = Stream.load("basic")
    model = quantised_model(stream)
    eager = stream.run(stream.denoiser(model))
    compiled, num_graphs = run_compiled(stream, model)
    assert relative_error(compiled, eager) < 1e-4
    assert num_graphs == run_compiled(stream, stream.transformer())[1]


def run_compiled(stream: Stream, model: StreamingTransformer) -> tuple[Tensor, int]:
    """Latents, and how many graphs they took."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    latents = stream.run(stream.denoiser(model, pieces=CompiledPieces.compiled(backend="aot_eager")))
    return latents, torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("format", [FLOAT8, INT8])
def test_loading_quantises_one_tensor_at_a_time(tiny_checkpoint: Path, format: torch.dtype):
    """Of the tensors in a wider dtype only the one at hand is alive; the model's bytes are as planned."""
    quantiser, alive, most = Quantiser(format), weakref.WeakSet(), 0

    def place(name: str, tensor: Tensor) -> nn.Parameter | None:
        nonlocal most
        placed = quantiser.place(name, tensor)
        if placed is not None:
            alive.add(tensor)
            most = max(most, len(alive))
        return placed

    model = load_transformer(open_checkpoint(tiny_checkpoint), "cpu", torch.bfloat16, place=place)
    quantiser.install(model)
    assert most <= 2  # the one at hand, and the last, which goes when the next one is bound to its name
    assert not alive
    with torch.device("meta"):
        plain = StreamingTransformer(CONFIG).state_dict()
    expected = sum(
        value.numel() + 4 * len(value)
        if is_quantised(name, value.shape)
        else value.numel() * held_dtype(name, torch.bfloat16).itemsize
        for name, value in plain.items()
    )
    assert sum(tensor.nbytes for tensor in model.state_dict().values()) == expected


def test_only_what_is_selected_is_quantised():
    quantiser = Quantiser()
    model = random_transformer(
        CONFIG, "cpu", torch.bfloat16, select=lambda n: n.startswith("blocks.1."), place=quantiser.place
    )
    quantiser.install(model)
    kinds = {i: type(model.layer(i).ffn[0]) for i in range(3)}
    assert kinds == {0: nn.Linear, 1: Float8Linear, 2: nn.Linear}


@pytest.mark.parametrize("format", [FLOAT8, INT8])
def test_random_weights_in_8_bits_run_finite(format: torch.dtype):
    stream, quantiser = Stream.load("basic"), Quantiser(format)
    model = random_transformer(stream.config, "cpu", torch.bfloat16, place=quantiser.place)
    quantiser.install(model)
    denoiser = stream.denoiser(model.fuse())
    stream.run(denoiser)
    assert all(0.1 < float(v.std()) < 10 for v in denoiser.schedule.velocities)
