"""Offloading on a GPU: the same bits whatever waits where, no waiting, no races, nothing left behind."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor
from torch._inductor.utils import run_and_get_code

from avatar.checkpoints.transformer_config import ModelConfig
from avatar.model import kv_cache, quantize
from avatar.model.kv_cache import KeysValues, quantise_tokens, widen_tokens
from avatar.model.linear_8bit import Quantiser
from avatar.model.quantize import FLOAT8
from avatar.model.transformer import StreamingTransformer
from avatar.model.weights.random_weights import random_transformer
from avatar.pipeline.denoiser import LocalDenoiser
from avatar.pipeline.layer_stack import CompiledPieces
from avatar.pipeline.offload.host_layers import HostLayers, Prefetcher, settle_on_host
from avatar.pipeline.offload.host_modules import HostModules
from avatar.pipeline.offload.pinned import host_buffer, pinned_bytes
from avatar.pipeline.rollout import make_block, rollout
from avatar.planning.placement import Placement, spread
from tests.pipeline.streams import Stream, relative_error

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

CUDA = torch.device("cuda", 0)
RING_DTYPES = [torch.bfloat16, FLOAT8]


def model_of(stream: Stream, fp8: bool) -> StreamingTransformer:
    """A stream's model on the GPU in bf16, or with fp8 weights."""
    model = stream.transformer(torch.bfloat16, fuse=False).to(CUDA)
    if fp8:
        quantiser = Quantiser()
        for name, tensor in model.state_dict().items():
            placed = quantiser.place(name, tensor)
            if placed is not None:
                model.get_submodule(name.removesuffix(".weight")).weight = placed
        quantiser.install(model)
    return model.fuse()


def offloaded(
    stream: Stream, fp8: bool, pieces: CompiledPieces, ring_dtype: torch.dtype, **options
) -> LocalDenoiser:
    """All layers on the host."""
    model = model_of(stream, fp8)
    layers = HostLayers(model, spread(model.config.num_layers, model.config.num_layers), 2, CUDA)
    return stream.denoiser(model, pieces=pieces, ring_dtype=ring_dtype, host_layers=layers, **options)


def latents(denoiser: LocalDenoiser, stream: Stream, num_blocks: int = 9) -> Tensor:
    return torch.cat(list(rollout(stream.conditions, denoiser, num_blocks=num_blocks, seed=3)), dim=1)


@pytest.mark.parametrize("ring_dtype", RING_DTYPES)
@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_what_waits_on_the_host_changes_no_bit(ring_dtype: torch.dtype, fp8: bool, compiled: bool):
    stream, pieces = Stream.load("refresh_pose"), CompiledPieces.compiled() if compiled else CompiledPieces()
    near = stream.denoiser(model_of(stream, fp8), pieces=pieces, ring_dtype=ring_dtype)
    expected = latents(near, stream)
    for rings_on_host in (False, True):
        for diagonal in (False, True):
            far = offloaded(stream, fp8, pieces, ring_dtype, rings_on_host=rings_on_host, diagonal=diagonal)
            assert torch.equal(latents(far, stream), expected), (rings_on_host, diagonal)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("ring_dtype", RING_DTYPES)
def test_nothing_waits_for_the_gpu_and_memory_stays_flat(
    compiled: bool, diagonal: bool, ring_dtype: torch.dtype
):
    stream, pieces = Stream.load("basic"), CompiledPieces.compiled() if compiled else CompiledPieces()
    denoiser = offloaded(stream, True, pieces, ring_dtype, rings_on_host=True, diagonal=diagonal)
    denoiser.begin(stream.conditions)
    held, num_steps = [], denoiser.schedule.num_steps
    for index in range(12):
        denoiser.submit(make_block(stream.conditions, stream.geometry, num_steps, index, seed=0))
        if len(denoiser._submitted) < denoiser.num_in_flight:
            continue
        oldest = denoiser._submitted[0]
        try:
            if index > 5:  # until then graphs and kernels are built
                torch.cuda.set_sync_debug_mode("error")
            while oldest.step < num_steps:
                denoiser.advance(denoiser._due())
        finally:
            torch.cuda.set_sync_debug_mode("default")
        denoiser._submitted.popleft()
        del oldest
        held.append(torch.cuda.memory_allocated(CUDA))
    assert max(held[-5:]) - min(held[-5:]) < 2**20, held


@pytest.mark.parametrize("name", ["basic", "refresh_pose", "two_speakers"])
def test_rings_in_fp8_stay_within_their_bound(name: str):
    """e4m3 moves a key or a value by 2.65 % of its norm, and attention averages over a hundred and more."""
    stream = Stream.load(name)
    plain, rounded = (
        stream.run(stream.denoiser(model_of(stream, False), ring_dtype=dtype)) for dtype in RING_DTYPES
    )
    assert 0 < relative_error(rounded, plain) < 0.0265


@pytest.mark.parametrize("cores", [True, False])
def test_fp8_rings_are_written_and_read_by_one_kernel_each(cores: bool, monkeypatch: pytest.MonkeyPatch):
    """One for keys, one for values; on cards whose Triton knows no e4m3 a conversion stands separate them."""
    if cores and torch.cuda.get_device_capability(CUDA) < (8, 9):
        pytest.skip("this GPU has no fp8 cores")
    if not cores:
        monkeypatch.setattr(quantize, "compiles_float8", lambda device: False)
    torch._dynamo.reset()
    own = KeysValues(*(torch.randn(3168, 40, 128, device=CUDA).bfloat16() for _ in "kv"))
    kept, (code,) = run_and_get_code(torch.compile(quantise_tokens, fullgraph=True, dynamic=False), own)
    for values, scale, original in zip(kept[:2], kept[2:], own, strict=True):
        assert values.dtype == FLOAT8
        assert scale.shape == (3168, 40, 1)
        assert relative_error(values.float() * scale, original) == pytest.approx(0.0265, rel=0.05)
    past, scales = KeysValues(*kept[:2]), KeysValues(*kept[2:])
    into, expected = (KeysValues(*(torch.empty_like(t) for t in own)) for _ in range(2))
    _, (reading,) = run_and_get_code(
        torch.compile(widen_tokens, fullgraph=True, dynamic=False), into, past, scales
    )
    kv_cache.widen_tokens(expected, past, scales)
    assert torch.equal(into.k, expected.k)
    assert torch.equal(into.v, expected.v)
    if cores:
        for source in (code, reading):
            assert len(re.findall(r"triton_\w+\.run\(", source[source.index("def call(") :])) <= 2


class Counters(Prefetcher[int, Tensor]):
    """Vectors that are counted up on the device; all streams are made slow at random."""

    def __init__(self, num_slots: int, num_keys: int, cycles: Iterable[int]) -> None:
        self.rest = list(cycles)
        self.host = [host_buffer(2**22, CUDA) for _ in range(num_keys)]
        for buffer in self.host:
            buffer.zero_()
        places = [torch.zeros(2**22, dtype=torch.uint8, device=CUDA) for _ in range(num_slots)]
        super().__init__(CUDA, places, list(range(num_keys)))

    def _memory(self, place: Tensor) -> Iterable[Tensor]:
        return [place]

    def _load(self, key: int, place: Tensor) -> None:
        torch.cuda._sleep(self.rest.pop())
        self.traffic.copy_in(place, self.host[key])

    def _store(self, key: int, place: Tensor) -> None:
        torch.cuda._sleep(self.rest.pop())
        self.traffic.copy_out(self.host[key], place)


@pytest.mark.parametrize(("num_slots", "num_keys"), [(2, 1), (2, 2), (2, 3), (3, 5), (2, 7)])
def test_streams_do_not_race(num_slots: int, num_keys: int):
    """Whichever of load, work and store is slow, no use of a thing is lost."""
    generator = torch.Generator().manual_seed(num_keys)
    cycles = (torch.randint(0, 5, (4000,), generator=generator) * 200_000).tolist()
    counters = Counters(num_slots, num_keys, cycles)
    for turn in range(20 * num_keys):
        with counters.use(turn % num_keys) as place:
            torch.cuda._sleep(counters.rest.pop())
            place.add_(1)
    torch.cuda.synchronize()
    assert [set(buffer.unique().tolist()) for buffer in counters.host] == [{20}] * num_keys


def test_pinned_memory_is_exact_and_given_back():
    before = pinned_bytes()
    buffer = host_buffer(3 * 2**20 + 5, CUDA)
    assert buffer.is_pinned()
    assert pinned_bytes() - before == len(buffer) == 3 * 2**20 + 5
    view = buffer[7:].view(torch.uint8)
    del buffer
    assert pinned_bytes() - before > 0  # the view still lies there
    del view
    assert pinned_bytes() == before


def test_everything_leaves_with_its_owner():
    stream = Stream.load("basic")
    latents(offloaded(stream, True, CompiledPieces(), FLOAT8), stream)  # libraries' workspaces come once
    gc.collect()
    device, host = torch.cuda.memory_allocated(CUDA), pinned_bytes()
    denoiser = offloaded(stream, True, CompiledPieces(), FLOAT8, rings_on_host=True, diagonal=True)
    latents(denoiser, stream)
    assert pinned_bytes() > host
    gc.disable()  # nothing may wait for the collector of cycles
    try:
        del denoiser
        assert pinned_bytes() == host
        torch.cuda.synchronize()
        assert torch.cuda.memory_allocated(CUDA) - device < 2**20
    finally:
        gc.enable()


def test_side_models_visit_the_device():
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Linear(6, 7))
    module[0].weight.data = module[0].weight.data.contiguous(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 8, 8)
    expected, host = module(x), HostModules([module], CUDA)
    before = torch.cuda.memory_allocated(CUDA)
    with host.on_device():
        assert next(module.parameters()).is_cuda
        assert module[0].weight.is_contiguous(memory_format=torch.channels_last)
        assert relative_error(module(x.to(CUDA)).cpu(), expected) < 1e-2  # convolutions may use TF32
    assert all(tensor.is_pinned() for tensor in module.state_dict().values())
    gc.collect()
    assert torch.cuda.memory_allocated(CUDA) == before


def test_loading_puts_layers_on_the_host_one_tensor_at_a_time():
    """At full width: the device never holds more than the rest, and a tensor under way."""
    config, quantiser = ModelConfig(num_layers=4, audio_inject_layers=(0, 2)), Quantiser()
    settle = settle_on_host(config, Placement(layers_on_host=4))
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(CUDA)
    before = torch.cuda.memory_allocated(CUDA)
    model = random_transformer(config, CUDA, torch.bfloat16, place=quantiser.place, settle=settle)
    quantiser.install(model)
    model.fuse()
    rest = torch.cuda.memory_allocated(CUDA) - before
    largest = max(value.numel() for value in model.state_dict().values())
    chunk = quantize.CHUNK_ROWS * config.ffn_dim * (2 + 4 + 4 + 1)
    assert torch.cuda.max_memory_allocated(CUDA) - before <= rest + largest * 4 + chunk
    layers = HostLayers(model, range(4), 2, CUDA)
    slots = torch.cuda.memory_allocated(CUDA) - before - rest
    assert slots <= 2 * max(buffer.nbytes for buffer in layers.buffers.values())
    assert layers.host_bytes > 4 * 351e6
    assert all(buffer.is_pinned() for buffer in layers.buffers.values())
