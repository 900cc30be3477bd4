"""The transformer outside its layers, against the public code's numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from avatar.checkpoints.transformer_config import ModelConfig
from avatar.errors import BadInput
from avatar.model.framepack import PatchEmbedding
from avatar.model.transformer import StreamingTransformer, linear_float32
from avatar.model.transformer_layer import Attention
from tests.pipeline.streams import NAMES, Stream, relative_error


@pytest.fixture(params=NAMES)
def stream(request) -> Stream:
    return Stream.load(request.param)


def test_the_published_model_has_its_tensors_and_parameters():
    with torch.device("meta"):
        tensors = StreamingTransformer(ModelConfig()).state_dict()
    assert len(tensors) == 1260
    assert round(sum(t.numel() for t in tensors.values()) / 1e9, 2) == 16.30


def test_audio_tokens(stream):
    tokens = stream.transformer().casual_audio_encoder(next(stream.blocks()).audio)
    assert relative_error(tokens.local, stream.tensors["audio_local_block0"]) < 1e-5
    assert relative_error(tokens.overall[:, :, None], stream.tensors["audio_global_block0"]) < 1e-5


def test_audio_is_encoded_in_float32_whatever_the_model_is(stream):
    """Nothing is lost but by rounding the tokens at the end."""
    features = next(stream.blocks()).audio
    exact = stream.transformer().embed_audio(features)
    model = stream.transformer(torch.bfloat16)
    assert {value.dtype for value in model.casual_audio_encoder.parameters()} == {torch.float32}
    for found, expected in zip(model.embed_audio(features), exact, strict=True):
        assert torch.equal(found, expected.bfloat16())


@pytest.mark.parametrize("fuse", [False, True])
def test_prefill_keeps_unrotated_keys_and_values(stream, fuse):
    denoiser = stream.denoiser(stream.transformer(fuse=fuse))
    denoiser.begin(stream.conditions)
    caches = denoiser.stack.caches.values()
    assert relative_error(torch.stack([c.conditions[0].k for c in caches]), stream.tensors["sink_k"]) < 1e-5
    assert relative_error(torch.stack([c.conditions[0].v for c in caches]), stream.tensors["sink_v"]) < 1e-5


def test_fused_projection_equals_three():
    torch.manual_seed(0)
    module, x = Attention(dim=48, num_heads=4, eps=1e-6), torch.randn(10, 48)
    with torch.no_grad():
        q, (k, v) = module.project(x)
        module.fuse()
        fused_q, (fused_k, fused_v) = module.project(x)
    for found, expected in ((fused_q, q), (fused_k, k), (fused_v, v)):
        torch.testing.assert_close(found, expected)
    assert not any(name.startswith(("q.", "k.", "v.")) for name in module.state_dict())


@pytest.mark.parametrize("patch", [(1, 2, 2), (2, 4, 4), (4, 8, 8)])
def test_patch_embedding_equals_the_convolution(patch):
    torch.manual_seed(0)
    embedding, latents = PatchEmbedding(16, 24, patch), torch.randn(16, 8, 16, 24)
    with torch.no_grad():
        expected = F.conv3d(latents, embedding.weight, embedding.bias, stride=patch).flatten(1).T
        torch.testing.assert_close(embedding(latents), expected, rtol=1e-4, atol=1e-5)


def test_wide_linear_in_slices_equals_whole():
    linear, x = torch.nn.Linear(8, 50).bfloat16(), torch.randn(3, 8)
    with torch.no_grad():
        expected = F.linear(x, linear.weight.float(), linear.bias.float())
        assert torch.equal(linear_float32(x, linear, rows=16), expected)


def test_too_long_a_prompt_is_reported():
    model = Stream.load("basic").transformer()
    with pytest.raises(BadInput, match="1 too many"):
        model.embed_text(torch.zeros(model.config.text_len + 1, model.config.text_dim))


def test_text_is_padded_with_zeros_before_the_mlp():
    stream = Stream.load("basic")
    model, text = stream.transformer(), stream.tensors["text_embeds"]
    context = model.embed_text(text)
    assert len(context) == model.config.text_len > len(text)
    torch.testing.assert_close(context[-1], model.text_embedding(torch.zeros(model.config.text_dim)))
