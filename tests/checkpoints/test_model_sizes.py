"""The planner's bytes of every model are those that accelerate counts in the model itself."""

from __future__ import annotations

import pytest
import torch
from accelerate.utils import compute_module_sizes
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from transformers import UMT5EncoderModel, Wav2Vec2Model

from avatar.bench.random_parts import SPEECH
from avatar.checkpoints.model_sizes import (
    DTYPE_BYTES,
    SPEECH_ENCODER_VALUES,
    TEXT_BLOCK_VALUES,
    TEXT_ENCODER_VALUES,
    VAE_DECODER_VALUES,
    VAE_ENCODER_VALUES,
    ModelSizes,
)
from avatar.checkpoints.transformer_config import ModelConfig
from avatar.hardware.inventory import Inventory
from avatar.model.linear_8bit import Quantiser
from avatar.model.quantize import FLOAT8, INT8
from avatar.model.transformer import StreamingTransformer, held_dtype
from avatar.model.weights.loading import install
from avatar.planning.planner import plan
from avatar.preset import load_preset
from tests.fixtures.single_files import XXL

CONFIG, PUBLISHED = ModelConfig(), ModelSizes.published()
WIDTHS = {"bf16": torch.bfloat16, "fp8": torch.bfloat16, "int8": torch.bfloat16, "fp32": torch.float32}
FORMATS = {"fp8": FLOAT8, "int8": INT8}


def held_as(weight_dtype: str) -> StreamingTransformer:
    """The published transformer on the meta device, its tensors as a preset's weight_dtype holds them."""
    with torch.device("meta"):
        model = StreamingTransformer(CONFIG).requires_grad_(False)
    format = FORMATS.get(weight_dtype)
    quantiser = Quantiser() if format is None else Quantiser(format)
    for name, value in model.state_dict().items():
        kept = value.to(held_dtype(name, WIDTHS[weight_dtype]))
        placed = quantiser.place(name, kept) if format is not None else None
        install(model, name, kept if placed is None else placed.data)
    quantiser.install(model)
    return model


@pytest.fixture(scope="module", params=WIDTHS)
def held(request: pytest.FixtureRequest) -> tuple[str, StreamingTransformer, dict[str, int]]:
    model = held_as(request.param)
    return request.param, model, compute_module_sizes(model)


def test_the_whole_transformer(held):
    dtype, _, sizes = held
    assert PUBLISHED.transformer.num_bytes(dtype) == sizes[""]


def test_each_layer_with_its_injection(held):
    dtype, model, sizes = held
    for index, layer in enumerate(PUBLISHED.layers):
        names = [f"blocks.{index}"]
        if (entry := model.audio_injector.index_of.get(index)) is not None:
            names += [f"audio_injector.{kind}.{entry}" for kind in ("injector", "injector_adain_layers")]
        assert layer.num_bytes(dtype) == sum(sizes[name] for name in names), index


def test_the_rest_of_the_transformer(held):
    dtype, _, sizes = held
    rest = sizes[""] - sizes["blocks"] - sizes["audio_injector"]
    assert PUBLISHED.others.num_bytes(dtype) == rest


def test_fusing_the_projections_changes_no_size(held):
    _, model, sizes = held
    assert compute_module_sizes(model.fuse())[""] == sizes[""]


def test_the_quantised_model_is_quantised():
    weight = held_as("fp8").layer(0).ffn[0].weight
    assert weight.dtype == FLOAT8


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_the_side_models(dtype):
    with torch.device("meta"):
        vae, text = AutoencoderKLWan(), UMT5EncoderModel(XXL)
        speech = Wav2Vec2Model(SPEECH)
    vae_sizes, text_sizes, speech_sizes = (
        compute_module_sizes(model, dtype=WIDTHS[dtype]) for model in (vae, text, speech)
    )
    width = DTYPE_BYTES[dtype]
    encoder = vae_sizes["encoder"] + vae_sizes["quant_conv"]
    decoder = vae_sizes["decoder"] + vae_sizes["post_quant_conv"]
    assert (VAE_ENCODER_VALUES * width, VAE_DECODER_VALUES * width) == (encoder, decoder)
    assert TEXT_BLOCK_VALUES * width == text_sizes["encoder.block.7"]
    assert TEXT_ENCODER_VALUES * width == text_sizes["encoder"]  # the words are counted as shared
    assert SPEECH_ENCODER_VALUES * width == speech_sizes[""]


def test_planned_items_are_these_bytes():
    """On the one card of a preset that offloads nothing."""
    preset = load_preset("80gb")
    sizes = compute_module_sizes(held_as(preset.memory.weight_dtype))
    (gpu,) = plan(preset, Inventory.imagine(1, 80)).gpus
    planned = {item.name: item.num_bytes for item in gpu.items}
    assert planned["transformer_weights"] + planned["embeddings"] == sizes[""]
