"""Transformer layers and rings that wait in pinned host memory and are on the GPU only around their use.

What is used next is copied by a stream of its own while the GPU computes, across layers, steps and blocks.
diffusers' group offloading and accelerate's hooks do less: they hang on a module's forward, which the pieces
of a layer here do not have; the host waits for the copying stream before each group; every tensor is copied
by itself, into memory that is asked for anew; and nothing of theirs writes back, as rings need.
On a CPU the same code copies when it is asked to: the slow twin of what streams do.
"""

from __future__ import annotations

import copy
import logging
import time
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from avatar.checkpoints.transformer_config import ModelConfig
from avatar.model.kv_cache import Ring
from avatar.model.transformer import LayerParts, StreamingTransformer
from avatar.model.weights.loading import Settle, stay
from avatar.pipeline.offload.host_modules import HostModules, tensors_of
from avatar.pipeline.offload.pinned import BufferLayout, host_buffer
from avatar.planning.placement import RING_SLOTS, Placement, spread

logger = logging.getLogger(__name__)

Key = TypeVar("Key", bound=Hashable)
Place = TypeVar("Place")


@dataclass
class Traffic:
    """Bytes that crossed the bus."""

    to_device_bytes: int = 0
    to_host_bytes: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.to_device_bytes + other.to_device_bytes, self.to_host_bytes + other.to_host_bytes)

    def copy_in(self, target: Tensor, source: Tensor) -> None:
        """Host to device, without waiting for it."""
        target.copy_(source, non_blocking=True)
        self.to_device_bytes += source.nbytes

    def copy_out(self, target: Tensor, source: Tensor) -> None:
        """Device to host, without waiting for it."""
        target.copy_(source, non_blocking=True)
        self.to_host_bytes += source.nbytes


class Lane:
    """A stream of a device: the current one, or one beside it. On a CPU all work is done in order."""

    def __init__(self, device: torch.device, beside: bool = False) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if beside and device.type == "cuda" else None

    @property
    def stream(self) -> torch.cuda.Stream | None:
        """None on a CPU."""
        if self._device.type != "cuda":
            return None
        return self._stream or torch.cuda.current_stream(self._device)

    def entered(self) -> AbstractContextManager[Any]:
        """What is enqueued meanwhile goes into this lane."""
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    def keeps(self, tensor: Tensor) -> None:
        """The tensor's memory may be given to others only when this lane is done with it."""
        if self.stream is not None:
            tensor.record_stream(self.stream)


class Mark:
    """A point in one lane's work that others can wait for; set anew, it is another point."""

    def __init__(self, device: torch.device) -> None:
        self._event = torch.cuda.Event() if device.type == "cuda" else None

    def set(self, lane: Lane) -> None:
        if self._event is not None:
            self._event.record(lane.stream)

    def awaited_by(self, lane: Lane) -> None:
        """What the lane does from here on comes after the point; the host does not wait."""
        if self._event is not None and lane.stream is not None:
            lane.stream.wait_event(self._event)


class Slot(Generic[Key, Place]):
    """One place on the device. arrived: what it holds is there. left: it may be overwritten."""

    def __init__(self, place: Place, device: torch.device) -> None:
        self.place = place
        self.key: Key | None = None
        self.in_use = False
        self.arrived, self.left = Mark(device), Mark(device)


class Conveyor(Generic[Key, Place]):
    """Places on the device which things from the host take in turn, each copied there ahead of its use.

    order: the keys as they will be used, from the first again after the last; another order costs time only.
    """

    def __init__(self, device: torch.device, places: Sequence[Place], order: Sequence[Key]) -> None:
        self.traffic = Traffic()
        self._order = list(order)
        self._turn = {key: turn for turn, key in enumerate(self._order)}
        self._work, self._in, self._out = Lane(device), Lane(device, beside=True), Lane(device, beside=True)
        self._slots: list[Slot[Key, Place]] = [Slot(place, device) for place in places]
        for slot in self._slots:
            slot.left.set(self._work)
            for tensor in self._memory(slot.place):
                self._in.keeps(tensor)
                self._out.keeps(tensor)

    def _memory(self, place: Place) -> Iterable[Tensor]:
        """The tensors that a place consists of."""
        raise NotImplementedError

    def _load(self, key: Key, place: Place) -> None:
        """Copy what has a key to a place."""
        raise NotImplementedError

    def _store(self, key: Key, place: Place) -> None:
        """Copy back what a use has changed: nothing, unless overridden."""

    @contextmanager
    def use(self, key: Key) -> Iterator[Place]:
        """The place where a thing lies, while the current stream works with it; one at a time."""
        self._bring([key, *self._next(key)][: len(self._slots)])
        slot = next(slot for slot in self._slots if slot.key == key)
        slot.in_use = True
        slot.arrived.awaited_by(self._work)
        slot.left.awaited_by(self._work)  # if it stayed since its last use: storing reads the place
        try:
            yield slot.place
        finally:
            slot.in_use = False
            slot.left.set(self._work)
        slot.left.awaited_by(self._out)
        with self._out.entered():
            self._store(key, slot.place)
        slot.left.set(self._out)
        self._bring(self._next(key))

    def _next(self, key: Key) -> list[Key]:
        """The keys that follow, as many as there are slots; at the end the key itself if it comes so soon."""
        turn, count = self._turn[key], min(len(self._slots), len(self._order))
        return [self._order[(turn + step) % len(self._order)] for step in range(1, count + 1)]

    def _bring(self, keys: Sequence[Key]) -> None:
        """Start copying those that are not there, the most urgent first, over what is not among them."""
        for key in keys:
            if any(slot.key == key for slot in self._slots):
                continue
            slot = next(slot for slot in self._slots if not slot.in_use and slot.key not in keys)
            slot.key = None
            slot.left.awaited_by(self._in)
            with self._in.entered():
                self._load(key, slot.place)
            slot.arrived.set(self._in)
            slot.key = key


class HostLayers(Conveyor[int, "LayerSlot"]):
    """Some of a transformer's layers, their audio injections with them, each in one buffer on the host."""

    def __init__(
        self, model: StreamingTransformer, indices: Sequence[int], num_slots: int, device: torch.device
    ) -> None:
        """Take the layers out of a model that is loaded and fused; their tensors may be anywhere."""
        start = time.perf_counter()
        self._parts = [model.layer_parts(index) for index in range(model.config.num_layers)]
        self.buffers = {
            index: HostModules(_modules(self._parts[index]), device).buffer for index in sorted(indices)
        }
        widest = max(self.buffers, key=lambda index: self.buffers[index].nbytes)
        slots = [LayerSlot.like(self._parts[widest], device) for _ in range(num_slots)]
        super().__init__(device, slots, list(self.buffers))
        _tell("layers", self.host_bytes, start)

    @property
    def host_bytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.buffers.values())

    @contextmanager
    def visit(self, index: int) -> Iterator[LayerParts]:
        """Any layer and its injection, on the device; the next from the host are on their way meanwhile."""
        parts = self._parts[index]
        if index not in self.buffers:
            yield parts
            return
        with self.use(index) as slot:
            yield slot.parts if parts.injection is not None else slot.parts._replace(injection=None)

    def _memory(self, place: LayerSlot) -> Iterable[Tensor]:
        return [place.buffer]

    def _load(self, key: int, place: LayerSlot) -> None:
        buffer = self.buffers[key]
        self.traffic.copy_in(place.buffer[: len(buffer)], buffer)


@dataclass(frozen=True)
class LayerSlot:
    """A layer on the device, with an injection behind it, whose tensors are views of one buffer.

    To bring another layer is to fill the buffer; one without an injection fills only the beginning. So
    compiled code sees a few more layers, and never a tensor that moved.
    """

    buffer: Tensor
    parts: LayerParts

    @classmethod
    def like(cls, parts: LayerParts, device: torch.device) -> LayerSlot:
        """The same modules over a buffer of their own."""
        tensors = tensors_of(_modules(parts)).values()
        layout = BufferLayout.of(tensors)
        buffer = torch.zeros(layout.num_bytes, dtype=torch.uint8, device=device)
        views = {
            id(tensor): nn.Parameter(view, requires_grad=False) if isinstance(tensor, nn.Parameter) else view
            for tensor, view in zip(tensors, layout.views(buffer), strict=True)
        }
        return cls(buffer, copy.deepcopy(parts, memo=views))


def _modules(parts: LayerParts) -> list[nn.Module]:
    """The layer's tensors come before the injection's."""
    return [part for part in parts if part is not None]


def settle_on_host(config: ModelConfig, placement: Placement) -> Settle:
    """Send a loading model's layers that will wait on the host there, tensor by tensor, injections too."""
    if not placement.layers_on_host:
        return stay
    indices = spread(config.num_layers, placement.layers_on_host)
    injections = [config.audio_inject_layers.index(i) for i in indices if i in config.audio_inject_layers]
    prefixes = [f"blocks.{index}." for index in indices]
    for name in ("injector", "injector_adain_layers"):
        prefixes += [f"audio_injector.{name}.{index}." for index in injections]

    def settle(name: str, tensor: Tensor) -> Tensor:
        return tensor.cpu() if name.startswith(tuple(prefixes)) else tensor

    return settle


def _tell(what: str, num_bytes: int, start: float) -> None:
    seconds = time.perf_counter() - start
    logger.info("%s in host memory: %.1f GiB, made in %.1f s", what, num_bytes / 2**30, seconds)


class RingMemory:
    """Host memory that the rings of one run leave to the next: to lock so much of it takes long."""

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []
        self._user: Callable[[], object] = lambda: None  # whose memory it is now, while that lives

    def take(self, user: object, num_buffers: int, num_bytes: int, device: torch.device) -> list[Tensor]:
        """Buffers of so many bytes each, for as long as the user lives; contents are undefined.

        Raises: DoesNotFit.
        """
        if self._user() is not None:
            return [host_buffer(num_bytes, device) for _ in range(num_buffers)]
        if [len(buffer) for buffer in self._buffers] != [num_bytes] * num_buffers:
            self._buffers.clear()  # given back before more is taken
            self._buffers += [host_buffer(num_bytes, device) for _ in range(num_buffers)]
        elif device.type == "cuda":
            torch.cuda.synchronize(device)  # the last user's copies
        self._user = weakref.ref(user)
        return list(self._buffers)


class HostRings(Conveyor[tuple[int, int], Ring]):
    """Every ring of a run in host memory; on the device is the one at work, and the next on its way."""

    def __init__(
        self,
        device: torch.device,
        order: Sequence[tuple[int, int]],
        new_ring: Callable[[], Ring],
        memory: RingMemory,
    ) -> None:
        """Empty rings by layer and step, in the order of their use; new_ring makes one on the device."""
        start, slots = time.perf_counter(), [new_ring() for _ in range(RING_SLOTS)]
        # On the host frames are apart, each in one piece, whatever their order on the device.
        layout = BufferLayout.of(torch.empty(t.shape, dtype=t.dtype, device="meta") for t in slots[0].tensors)
        layers = list(dict.fromkeys(layer for layer, _ in order))
        buffers = memory.take(self, len(layers), len(order) // len(layers) * layout.num_bytes, device)
        self.rings: dict[tuple[int, int], Ring] = {}
        for layer, buffer in zip(layers, buffers, strict=True):
            keys = [key for key in order if key[0] == layer]
            for key, part in zip(keys, buffer.split(layout.num_bytes), strict=True):
                self.rings[key] = slots[0].like(layout.views(part))
        self.host_bytes = len(order) * layout.num_bytes
        super().__init__(device, slots, order)
        _tell("rings", self.host_bytes, start)

    def _memory(self, place: Ring) -> Iterable[Tensor]:
        return place.tensors

    def _load(self, key: tuple[int, int], place: Ring) -> None:
        ring = self.rings[key]
        for target, source in zip(place.tensors, ring.tensors, strict=True):
            if ring.num_valid:
                self.traffic.copy_in(target[: ring.num_valid], source[: ring.num_valid])
        place.resume(ring)

    def _store(self, key: tuple[int, int], place: Ring) -> None:
        """Only the frames that were appended; the others are on the host already."""
        ring = self.rings[key]
        for written in ring.places(place.num_written - ring.num_written):
            for target, source in zip(ring.tensors, place.tensors, strict=True):
                self.traffic.copy_out(target[written], source[written])
        ring.resume(place)
