"""What waits on the host gives the same bits as what never left; slots, their order, the bus's traffic."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor

from avatar.model.kv_cache import Ring
from avatar.model.linear_8bit import Quantiser
from avatar.model.quantize import FLOAT8
from avatar.model.transformer import StreamingTransformer
from avatar.pipeline.denoiser import LocalDenoiser
from avatar.pipeline.layer_stack import CompiledPieces
from avatar.pipeline.offload.host_layers import HostLayers, LayerSlot, Prefetcher, RingMemory
from avatar.pipeline.offload.pinned import ALIGN_BYTES, BufferLayout, host_buffer, pinned_bytes
from avatar.pipeline.rollout import rollout
from avatar.planning.placement import spread
from tests.pipeline.streams import NAMES, Stream

CPU = torch.device("cpu")


def quantised(stream: Stream, format: torch.dtype = FLOAT8) -> StreamingTransformer:
    """A stream's model with weights in 8 bits."""
    model, quantiser = stream.transformer(fuse=False), Quantiser(format)
    for name, tensor in model.state_dict().items():
        placed = quantiser.place(name, tensor)
        if placed is not None:
            model.get_submodule(name.removesuffix(".weight")).weight = placed
    quantiser.install(model)
    return model.fuse()


def offloaded(model: StreamingTransformer, layers: int, ahead: int = 2) -> HostLayers:
    return HostLayers(model, spread(model.config.num_layers, layers), ahead, CPU)


def latents(denoiser: LocalDenoiser, stream: Stream, num_blocks: int = 8) -> Tensor:
    return torch.cat(list(rollout(stream.conditions, denoiser, num_blocks=num_blocks, seed=3)), dim=1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_layers_on_the_host_change_no_bit(name, layers):
    stream = Stream.load(name)
    expected = stream.run(stream.denoiser())
    model = stream.transformer()
    denoiser = stream.denoiser(model, host_layers=offloaded(model, layers))
    assert torch.equal(stream.run(denoiser), expected)


@pytest.mark.parametrize(("ahead", "format"), [(2, FLOAT8), (3, FLOAT8), (5, FLOAT8), (3, torch.int8)])
def test_quantised_layers_on_the_host_change_no_bit(ahead, format):
    stream = Stream.load("refresh_pose")
    expected = stream.run(stream.denoiser(quantised(stream, format)))
    model = quantised(stream, format)
    denoiser = stream.denoiser(model, host_layers=offloaded(model, 3, ahead))
    assert torch.equal(stream.run(denoiser), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, FLOAT8, torch.int8])
@pytest.mark.parametrize("window_frames", [4, 8, 12])
def test_rings_on_the_host_change_no_bit(dtype, window_frames):
    stream = Stream.load("refresh_pose")
    geometry = dataclasses.replace(stream.geometry, window_frames=window_frames)
    schedule = stream.denoiser().schedule
    near, far = (
        LocalDenoiser(stream.transformer(), geometry, schedule, ring_dtype=dtype, rings_on_host=away)
        for away in (False, True)
    )
    assert torch.equal(latents(far, stream), latents(near, stream))


@pytest.mark.parametrize("name", ["basic", "refresh_pose"])
@pytest.mark.parametrize("rings_on_host", [False, True])
def test_a_diagonal_at_a_time_changes_no_bit(name, rings_on_host):
    """Layers and rings on the host, blocks overlapping, the anchor refreshed while others are under way."""
    stream, model = Stream.load(name), Stream.load(name).transformer()
    far = stream.denoiser(
        model, host_layers=offloaded(model, 3), rings_on_host=rings_on_host, ring_dtype=FLOAT8, diagonal=True
    )
    assert far.num_in_flight == far.schedule.num_steps > 1
    near = stream.denoiser(ring_dtype=FLOAT8)
    assert torch.equal(latents(far, stream), latents(near, stream))
    assert list(far.stack.caches[0].conditions) == [1]  # the old anchor's memory is free


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_a_second_run_starts_with_empty_rings(dtype):
    """And with what its own first block says of keys and values in 8 bits."""
    stream = Stream.load("basic")
    denoiser = stream.denoiser(rings_on_host=True, ring_dtype=dtype)
    assert torch.equal(latents(denoiser, stream), latents(denoiser, stream))


def test_rings_leave_their_memory_to_the_next_run_alone():
    stream, memory = Stream.load("basic"), RingMemory()

    def new() -> LocalDenoiser:
        return stream.denoiser(rings_on_host=True, ring_memory=memory)

    def places(denoiser: LocalDenoiser) -> set[int]:
        return {ring.k.data_ptr() for ring in denoiser.stack.host_rings.rings.values()}

    first = new()
    expected, used = latents(first, stream), places(first)
    separate = new()
    assert torch.equal(latents(separate, stream), expected)
    assert not places(separate) & used
    del first
    again = new()
    assert torch.equal(latents(again, stream), expected)
    assert places(again) == used
    del again
    other = stream.denoiser(rings_on_host=True, ring_memory=memory, ring_dtype=FLOAT8)
    latents(other, stream)
    assert sum(map(len, memory._buffers)) == other.stack.host_rings.host_bytes


def test_compiled_pieces_see_no_new_tensors_after_the_first_blocks():
    """Slots are filled anew for every layer; nothing is compiled again, though any guard may look at them."""
    stream = Stream.load("refresh_pose")
    model = quantised(stream)
    torch._dynamo.reset()
    denoiser = stream.denoiser(
        model,
        host_layers=offloaded(model, 2),
        rings_on_host=True,
        ring_dtype=FLOAT8,
        pieces=CompiledPieces.compiled(backend="aot_eager"),
    )
    blocks = rollout(stream.conditions, denoiser, num_blocks=8, seed=3)
    found = [next(blocks), next(blocks)]
    torch.compiler.set_stance("fail_on_recompile")
    try:
        found += list(blocks)
    finally:
        torch.compiler.set_stance("default")
    expected = latents(stream.denoiser(quantised(stream), ring_dtype=FLOAT8), stream)
    assert torch.equal(torch.cat(found, dim=1), expected)


def test_what_crosses_the_bus():
    """Each step brings its layers once; the rings' valid frames come, and the block's own go back."""
    stream, num_blocks = Stream.load("basic"), 8
    config, steps, model = stream.config, stream.settings["num_steps"], stream.transformer()
    layers = offloaded(model, 3)
    denoiser = stream.denoiser(model, host_layers=layers, rings_on_host=True, ring_dtype=FLOAT8)
    latents(denoiser, stream, num_blocks)
    passes = num_blocks * steps + 3  # text, two prefills
    ahead = sum(layers.buffers[index].nbytes for index in (0, 1))  # brought and never used
    assert layers.traffic.to_device_bytes == passes * layers.host_bytes + ahead
    assert layers.traffic.to_host_bytes == 0
    held = Ring.allocate(stream.geometry, config.num_heads, config.head_dim, FLOAT8, "meta")
    ring = sum(tensor.nbytes for tensor in held.tensors)
    rings = denoiser.stack.host_rings
    frame, past = ring // stream.geometry.past_frames, stream.geometry.past_frames
    assert rings.traffic.to_host_bytes == num_blocks * steps * config.num_layers * 3 * frame
    valid = sum(min(3 * block, past) for block in range(num_blocks)) * steps * config.num_layers
    assert 0 <= rings.traffic.to_device_bytes - valid * frame <= 2 * ring
    assert denoiser.traffic.to_device_bytes == layers.traffic.to_device_bytes + rings.traffic.to_device_bytes


def test_a_diagonal_brings_each_layer_once():
    stream, num_blocks = Stream.load("basic"), 8
    steps, model = stream.settings["num_steps"], stream.transformer()
    layers = offloaded(model, 3)
    latents(stream.denoiser(model, host_layers=layers, diagonal=True), stream, num_blocks)
    diagonals = num_blocks + steps - 1
    ahead = sum(layers.buffers[index].nbytes for index in (0, 1))
    assert layers.traffic.to_device_bytes == (diagonals + 3) * layers.host_bytes + ahead


def test_layers_on_the_host_are_views_of_one_buffer_each():
    stream = Stream.load("basic")
    model = quantised(stream)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    layers = offloaded(model, 2)
    assert layers.buffers.keys() == {0, 1}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor.view(torch.uint8), before[name].view(torch.uint8)), name
    for index, buffer in layers.buffers.items():
        storage = buffer.untyped_storage().data_ptr()
        for tensor in model.layer(index).state_dict().values():
            assert tensor.untyped_storage().data_ptr() == storage
    gone = [weakref.ref(buffer.untyped_storage()) for buffer in layers.buffers.values()]
    slots = [weakref.ref(slot.place) for slot in layers._slots]
    denoiser = stream.denoiser(model, host_layers=layers, rings_on_host=True)
    stream.run(denoiser)
    gc.disable()  # nothing may wait for the collector of cycles
    try:
        del model, layers, denoiser, tensor, buffer
        assert all(ref() is None for ref in gone + slots)
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("num_layers", "on_host", "expected"),
    [(40, 0, ()), (4, 4, (0, 1, 2, 3)), (40, 4, (0, 10, 20, 30)), (5, 2, (0, 2))],
)
def test_layers_on_the_host_are_spread_evenly(num_layers, on_host, expected):
    assert spread(num_layers, on_host) == expected


class Letters(Prefetcher[str, list[Tensor]]):
    """Letters to places; notes what it does."""

    def __init__(self, num_slots: int, order: Iterable[str]) -> None:
        self.done: list[str] = []
        super().__init__(CPU, [[torch.zeros(1)] for _ in range(num_slots)], list(order))

    def _memory(self, place: list[Tensor]) -> Iterable[Tensor]:
        return place

    def _load(self, key: str, place: list[Tensor]) -> None:
        self.done.append(key)
        place[0].fill_(ord(key))

    def _store(self, key: str, place: list[Tensor]) -> None:
        assert chr(int(place[0])) == key
        self.done.append(key.upper())


def visit(letters: Letters, keys: str) -> str:
    """Use keys in turn; what was done up to the end of the last."""
    for key in keys:
        with letters.use(key) as place:
            assert chr(int(place[0])) == key
    return "".join(letters.done)


def test_the_next_one_is_on_its_way_when_a_place_is_free():
    assert visit(Letters(2, "abcd"), "abcda") == "abAcBdCaDbAc"
    assert visit(Letters(3, "abcd"), "abc") == "abcAdBaCb"


def test_what_stays_is_not_brought_again():
    assert visit(Letters(2, "ab"), "abab") == "abABAB"
    assert visit(Letters(3, "ab"), "ab") == "abAB"
    assert visit(Letters(2, "a"), "aaa") == "aAAA"


def test_another_order_costs_time_only():
    letters = Letters(2, "abcd")
    done = visit(letters, "adbbca")
    assert [key for key in done if key.isupper()] == list("ADBBCA")


def test_an_error_while_working_frees_the_place():
    letters = Letters(2, "abcd")
    with pytest.raises(ZeroDivisionError), letters.use("a"):
        _ = 1 / 0
    assert visit(letters, "a") == "abAc"


def test_tensors_in_a_buffer_keep_strides_dtype_and_alignment():
    weight = torch.randn(4, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    tensors = [weight, torch.randn(5, dtype=torch.bfloat16), torch.randn(3, 8)[:, ::2], torch.tensor(2.0)]
    layout = BufferLayout.of(tensors)
    views = layout.views(host_buffer(layout.num_bytes, CPU))
    for view, tensor in zip(views, tensors, strict=True):
        view.copy_(tensor)
        assert torch.equal(view, tensor)
        assert view.dtype == tensor.dtype
        assert view.storage_offset() * view.element_size() % ALIGN_BYTES == 0
    assert views[0].stride() == weight.stride()
    assert views[2].is_contiguous()
    assert layout.num_bytes == ALIGN_BYTES * 4
    assert pinned_bytes() == 0  # there is no GPU to lock anything for


def test_a_slot_takes_the_widest_layer():
    stream = Stream.load("basic")
    model = stream.transformer()
    layers = offloaded(model, 3)
    sizes = {index: buffer.nbytes for index, buffer in layers.buffers.items()}
    assert len(set(sizes.values())) == 2  # with an injection, and without
    assert {slot.place.buffer.nbytes for slot in layers._slots} == {max(sizes.values())}
    assert isinstance(layers._slots[0].place, LayerSlot)
