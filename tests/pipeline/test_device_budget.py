"""Where each tensor lives, without a GPU: PyTorch's meta device stands in for the card.

Tensors there have shapes and no contents. An operation that takes tensors of card and host is an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from avatar.model import kv_cache, products_8bit, quantize
from avatar.model.linear_8bit import Quantiser
from avatar.model.quantize import FLOAT8
from avatar.model.transformer import StreamingTransformer
from avatar.model.vae.vae import VideoVAE
from avatar.model.wav2vec2 import SpeechEncoder, SpeechFeatures
from avatar.model.weights.checkpoint import open_checkpoint
from avatar.pipeline import layer_stack
from avatar.pipeline.conditioning import encode_portrait
from avatar.pipeline.denoiser import Conditions, HeldAudio
from avatar.pipeline.layer_stack import CompiledPieces
from avatar.pipeline.offload.encoders import OffloadedVAE, offload_speech_encoder
from avatar.pipeline.offload.host_layers import HostLayers, settle_on_host
from avatar.pipeline.rollout import rollout
from avatar.planning.placement import Placement
from tests.pipeline.streams import Stream

CARD, HOST = torch.device("meta"), torch.device("cpu")
TO = Tensor.to
CROSSINGS = {torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default}


class OneDevice(TorchDispatchMode):
    """No operation but a copy works with tensors of two devices; numbers may come from anywhere."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor) and value.ndim]
        devices = {tensor.device.type for tensor in tensors}
        if len(devices) > 1 and function not in CROSSINGS:
            raise RuntimeError(f"{function} works with tensors of two devices")
        return function(*args, **(kwargs or {}))


@pytest.fixture(params=["scaled", "widened"])
def _card(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A card with fp8 cores, and one without."""
    monkeypatch.setattr(Tensor, "copy_", copied)
    monkeypatch.setattr(Tensor, "cpu", lambda tensor: torch.empty_like(tensor, device=HOST))
    monkeypatch.setattr(Tensor, "to", moved)
    monkeypatch.setattr(products_8bit, "_product", lambda device, dtype: request.param)
    monkeypatch.setattr(quantize, "compiles_float8", lambda device: request.param == "scaled")
    monkeypatch.setattr(layer_stack, "attention", attention)
    with OneDevice():
        yield


def moved(tensor: Tensor, *given: Any, **more: Any) -> Tensor:
    """To the host, too, which torch refuses: there are no numbers to copy."""
    if tensor.device == CARD and HOST in given:
        return torch.empty_like(tensor, device=HOST)
    return TO(tensor, *given, **more)


def copied(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """From any device to any other."""
    assert torch.broadcast_shapes(target.shape, source.shape) == target.shape
    return target


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Written out: the choice of a kernel would ask the card."""
    weights = torch.einsum("bnhd,bmhd->bhnm", q, k).softmax(-1)
    return torch.einsum("bhnm,bmhd->bnhd", weights, v)


def on_card(stream: Stream, layers: int = 0) -> StreamingTransformer:
    """A model of a stream's shape on the card, with fp8 weights; some layers have gone to the host."""
    settle = settle_on_host(stream.config, Placement(layers_on_host=layers))
    with torch.device("meta"):
        model = StreamingTransformer(stream.config)
    quantiser = Quantiser()
    for name, shaped in model.state_dict().items():
        tensor = torch.empty(shaped.shape, dtype=torch.bfloat16, device=CARD)
        placed = quantiser.place(name, tensor)
        owner, _, leaf = name.rpartition(".")
        kept = settle(name, tensor if placed is None else placed.data)
        setattr(model.get_submodule(owner), leaf, torch.nn.Parameter(kept, requires_grad=False))
    quantiser.install(model)
    return model.fuse()


def faked(conditions: Conditions) -> Conditions:
    """The same shapes, on the host."""

    def fake(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else torch.empty(tensor.shape, dtype=tensor.dtype)

    assert isinstance(conditions.audio, HeldAudio)
    audio = fake(conditions.audio.features)
    assert audio is not None
    parts = (fake(getattr(conditions, name)) for name in ("text", "reference", "motion"))
    return Conditions(*parts, HeldAudio(audio), fake(conditions.pose), fake(conditions.masks))


@pytest.mark.slow
@pytest.mark.usefixtures("_card")
@pytest.mark.parametrize("ring_dtype", [torch.bfloat16, FLOAT8])
@pytest.mark.parametrize(
    ("layers", "rings_on_host", "diagonal"),
    [(0, False, False), (0, True, False), (3, False, True), (3, True, False), (3, True, True)],
)
def test_every_tensor_is_where_it_is_worked_with(
    layers: int, rings_on_host: bool, diagonal: bool, ring_dtype: torch.dtype
) -> None:
    """Text, two prefills, blocks with empty and full rings; what is kept on the host stays there."""
    stream = Stream.load("refresh_pose")
    model = on_card(stream, layers)
    host_layers = HostLayers(model, range(layers), 2, CARD) if layers else None
    denoiser = stream.denoiser(
        model,
        pieces=CompiledPieces(),
        ring_dtype=ring_dtype,
        host_layers=host_layers,
        rings_on_host=rings_on_host,
        diagonal=diagonal,
    )
    assert denoiser.device == CARD
    latents = list(rollout(faked(stream.conditions), denoiser, num_blocks=8, seed=0))
    assert {block.device for block in latents} == {CARD}
    stack = denoiser.stack
    for index, cache in stack.caches.items():
        kept = (*cache.text, *cache.conditions[1], *cache.vectors.values())
        assert {tensor.device for tensor in kept} == {CARD}
        place = {tensor.device.type for ring in cache.rings.values() for tensor in ring.tensors}
        assert place == {"cpu" if rings_on_host else "meta"}
        devices = {tensor.device.type for tensor in model.layer(index).state_dict().values()}
        assert devices == {"cpu" if layers else "meta"}
    buffers = stack._window_buffers
    assert {buffers.k.device, buffers.v.device} == {CARD}
    slots = [slot.place for slot in stack.host_rings._slots] if rings_on_host else []
    assert {tensor.device for ring in slots for tensor in ring.tensors} <= {CARD}
    assert denoiser.traffic.to_device_bytes > 0 or not (layers or rings_on_host)


@pytest.mark.usefixtures("_card")
def test_a_mistake_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The window made on the ring's device, as if that were where the work is."""
    stream, build = Stream.load("basic"), kv_cache.Window.__init__

    def misplaced(self, geometry, ring, dtype, device) -> None:
        build(self, geometry, ring, dtype, ring.k.device)

    monkeypatch.setattr(kv_cache.Window, "__init__", misplaced)
    denoiser = stream.denoiser(on_card(stream), rings_on_host=True)
    with pytest.raises(RuntimeError, match="device"):
        list(rollout(faked(stream.conditions), denoiser, num_blocks=1, seed=0))


@pytest.mark.usefixtures("_card")
def test_side_models_visit_the_card(tiny_checkpoint: Path) -> None:
    files = open_checkpoint(tiny_checkpoint)
    speech = SpeechEncoder.load(files.speech_encoder, "cpu", torch.float32)
    vae = VideoVAE.load(files.vae, "cpu", torch.bfloat16)
    offload_speech_encoder(speech, CARD)
    heard = speech.encode(torch.empty(16_000))
    assert heard.device.type == "cpu"
    for name in ("model", "mean", "std"):
        setattr(vae, name, getattr(vae, name).to(CARD))
    visiting = OffloadedVAE(vae)
    assert visiting.device == CARD
    motion = encode_portrait(visiting, torch.empty(3, 64, 64))
    assert motion.device == CARD
    assert visiting.decoder_input(motion[None]).device == CARD
    assert {t.device.type for t in visiting.model.encoder.state_dict().values()} == {"cpu"}
    assert {t.device for t in visiting.model.decoder.state_dict().values()} == {CARD}
    features = SpeechFeatures(speech, silence, 48_000)
    assert features.frames(0, 12).device.type == "cpu"


def silence(start: int, stop: int) -> np.ndarray:
    return np.zeros(stop - start, np.float32)
