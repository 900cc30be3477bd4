"""A generation's parts: loaded as the preset's memory settings say, quantised ones from the cache."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from avatar.bench.random_parts import random_parts
from avatar.checkpoints.locations import CACHE_ENVIRONMENT
from avatar.checkpoints.transformer_config import ModelConfig
from avatar.errors import Cancelled
from avatar.geometry import SPEECH_HZ, Size
from avatar.media.intake import open_request
from avatar.media.sample_inputs import write_sample
from avatar.model.linear_8bit import Float8Linear, Int8Linear
from avatar.model.quantize import FLOAT8, INT8
from avatar.model.transformer import StreamingTransformer
from avatar.model.weights import weight_cache
from avatar.model.weights.checkpoint import open_checkpoint
from avatar.pipeline.components import Components
from avatar.pipeline.conditioning import SpeechTrack
from avatar.pipeline.decode import StreamingDecoder
from avatar.pipeline.denoiser_choice import local_denoiser
from avatar.pipeline.layer_stack import CompiledPieces
from avatar.pipeline.model_loading import MadeModels
from avatar.pipeline.offload.encoders import OffloadedVAE
from avatar.pipeline.offload.host_layers import Prefetcher, settle_on_host
from avatar.pipeline.pipeline import DiffusionPipeline
from avatar.pipeline.rollout import rollout
from avatar.planning.placement import ALL_ON_GPU, Placement
from avatar.preset import Preset, load_preset

PRESET = load_preset("self-test").with_settings(weight_dtype="fp8")
FORMATS = {"fp8": (FLOAT8, Float8Linear), "int8": (INT8, Int8Linear)}


def require_quantised(model: StreamingTransformer, weight_dtype: str) -> None:
    """Big products in 8 bits, the audio encoder in float32, the rest in bf16."""
    format, kind = FORMATS[weight_dtype]
    layer = model.layer(0)
    for linear in (layer.self_attn.qkv, layer.self_attn.o, layer.ffn[0], layer.cross_attn.k):
        assert isinstance(linear, kind)
    tensors = {name: value for name, value in model.state_dict().items() if not name.endswith("scale")}
    audio = {name: value for name, value in tensors.items() if name.startswith("casual_audio_encoder.")}
    assert {value.dtype for value in audio.values()} == {torch.float32}
    assert {value.dtype for name, value in tensors.items() if name not in audio} == {format, torch.bfloat16}
    assert model.dtype == torch.bfloat16


@pytest.mark.parametrize("weight_dtype", FORMATS)
def test_weights_in_8_bits_come_through_the_cache(
    weight_dtype: str, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_ENVIRONMENT, str(tmp_path))
    monkeypatch.setattr(weight_cache, "FILE_BYTES", 100_000)
    files = open_checkpoint(tiny_checkpoint)
    parts = Components.load(PRESET.with_settings(weight_dtype=weight_dtype).memory, files)
    assert not list(tmp_path.iterdir())  # the transformer comes later
    require_quantised(parts.load_transformer(), weight_dtype)
    assert (tmp_path / weight_cache.key(files, torch.bfloat16, FORMATS[weight_dtype][0])).is_dir()
    parts.release_transformer()
    require_quantised(parts.load_transformer(), weight_dtype)


def test_loading_fp8_may_be_stopped(tiny_checkpoint: Path) -> None:
    parts = Components.load(PRESET.memory, open_checkpoint(tiny_checkpoint))

    def stop() -> None:
        raise Cancelled("The run was stopped.")

    with pytest.raises(Cancelled):
        parts.load_transformer(stop)


@pytest.mark.parametrize("weight_dtype", FORMATS)
def test_random_weights_are_quantised_too(weight_dtype: str) -> None:
    parts = random_parts(PRESET.with_settings(weight_dtype=weight_dtype))
    require_quantised(parts.load_transformer(), weight_dtype)


AWAY = Placement(layers_on_host=3, rings_on_host=True, side_models_on_host=True, diagonal=True)


def listen(start: int, stop: int) -> np.ndarray:
    """A tone at 16 kHz."""
    return np.sin(np.arange(start, stop) * 0.07).astype(np.float32) * 0.1


def make_latents(parts: Components, preset: Preset, folder: Path) -> Tensor:
    """A few blocks, as the engine would make them."""
    portrait = folder / "portrait.png"
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(portrait)
    track = SpeechTrack(listen, 3 * SPEECH_HZ)
    conditions = parts.conditions.encode(portrait, "a person", Size(64, 64), [track])
    denoiser = local_denoiser(preset, parts, Size(64, 64), CompiledPieces())
    return torch.cat(list(rollout(conditions, denoiser, num_blocks=6, seed=0)), dim=1)


@pytest.mark.parametrize("ring_dtype", ["bf16", "fp8"])
@pytest.mark.parametrize("weight_dtype", ["bf16", "fp8", "int8"])
def test_a_placement_is_obeyed_and_changes_no_bit(
    weight_dtype: str, ring_dtype: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    preset = PRESET.with_settings(weight_dtype=weight_dtype, ring_dtype=ring_dtype)
    files = open_checkpoint(tiny_checkpoint)
    near, far = Components.load(preset.memory, files), Components.load(preset.memory, files, placement=AWAY)
    expected, found = (make_latents(parts, preset, tmp_path) for parts in (near, far))
    assert torch.equal(found, expected)
    assert near.host_layers is None
    assert far.host_layers is not None
    assert far.host_layers.buffers.keys() == {0, 1, 2}
    assert far.host_layers.traffic.to_device_bytes > 0
    assert isinstance(far.vae, OffloadedVAE)
    denoiser = local_denoiser(preset, far, Size(64, 64), CompiledPieces())
    assert denoiser.stack.ring_dtype == (FLOAT8 if ring_dtype == "fp8" else torch.bfloat16)
    assert (denoiser.stack.rings_on_host, denoiser.num_in_flight) == (True, preset.generation.sample_steps)


def test_releasing_the_transformer_frees_what_waits_on_the_host(tiny_checkpoint: Path) -> None:
    parts = Components.load(PRESET.memory, open_checkpoint(tiny_checkpoint), placement=AWAY)
    parts.load_transformer()
    assert parts.host_layers is not None
    gone = [weakref.ref(buffer) for buffer in parts.host_layers.buffers.values()]
    parts.release_transformer()
    assert [ref() for ref in gone] == [None] * 3
    parts.load_transformer()
    assert parts.host_layers is not None


def test_layers_settle_on_the_host_with_their_injections() -> None:
    class Far:
        """A tensor elsewhere."""

        def cpu(self) -> str:
            return "host"

    config = ModelConfig(num_layers=12, audio_inject_layers=(0, 4, 10))
    settle = settle_on_host(config, Placement(layers_on_host=3))  # 0, 4, 8
    tensor = Far()
    for name, moves in {
        "blocks.0.self_attn.q.weight": True,
        "blocks.4.modulation": True,
        "blocks.8.ffn.0.bias": True,
        "blocks.1.ffn.0.bias": False,
        "blocks.10.ffn.0.bias": False,
        "audio_injector.injector.0.q.weight": True,
        "audio_injector.injector_adain_layers.1.linear.weight": True,
        "audio_injector.injector.2.q.weight": False,  # layer 10's
        "patch_embedding.weight": False,
    }.items():
        assert settle(name, tensor) is tensor or settle(name, tensor) == "host"
        assert (settle(name, tensor) == "host") is moves, name
    assert settle_on_host(config, ALL_ON_GPU)("blocks.0.modulation", tensor) is tensor


def test_a_deferred_decode_finds_all_that_was_offloaded_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rings and layers, on the host and on the device: their owners are gone, and they own all of it."""
    preset = load_preset("self-test").with_settings(enable_online_decode=False)
    alive, checked = weakref.WeakSet[Prefetcher](), []
    build, decode = Prefetcher.__init__, StreamingDecoder.decode

    def noted(self: Prefetcher, *arguments) -> None:
        alive.add(self)
        build(self, *arguments)

    def check(self: StreamingDecoder, latents: Tensor) -> Tensor:
        checked.append(len(alive))
        return decode(self, latents)

    monkeypatch.setattr(Prefetcher, "__init__", noted)
    monkeypatch.setattr(StreamingDecoder, "decode", check)
    source = DiffusionPipeline(preset, models=MadeModels.given(random_parts(preset, AWAY)))
    inputs = write_sample(tmp_path, Size(64, 64), 1.0)
    request = open_request(*inputs, preset, output=tmp_path / "out.mp4", work=tmp_path / "work")
    gc.disable()  # nothing may wait for the collector of cycles
    try:
        frames = [event for event in source.frames(request, lambda: False) if isinstance(event, np.ndarray)]
    finally:
        gc.enable()
    assert sum(map(len, frames)) == 25
    assert checked == [0] * 3
