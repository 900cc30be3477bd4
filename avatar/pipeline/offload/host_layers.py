"""Offloaded transformer layers and rings: kept in pinned host memory, on the GPU only around their use.

The next layer or ring is copied on a separate stream while the GPU computes, across layers, steps and blocks.
diffusers' group offloading and accelerate's hooks do less: they attach to a module's forward, which our layer
pieces do not have; the host waits for the copy stream before each group; every tensor is copied separately,
into newly allocated memory; and they do not copy back, as rings require.
On a CPU the same code copies synchronously, which is the reference for the version with streams.
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
    """Bytes copied between host and device."""

    to_device_bytes: int = 0
    to_host_bytes: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.to_device_bytes + other.to_device_bytes, self.to_host_bytes + other.to_host_bytes)

    def copy_in(self, target: Tensor, source: Tensor) -> None:
        """Copy host to device, without waiting for it."""
        target.copy_(source, non_blocking=True)
        self.to_device_bytes += source.nbytes

    def copy_out(self, target: Tensor, source: Tensor) -> None:
        """Copy device to host, without waiting for it."""
        target.copy_(source, non_blocking=True)
        self.to_host_bytes += source.nbytes


class DeviceStream:
    """A device's current stream, or a separate one. On a CPU all work is synchronous."""

    def __init__(self, device: torch.device, separate: bool = False) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if separate and device.type == "cuda" else None

    @property
    def cuda_stream(self) -> torch.cuda.Stream | None:
        """The CUDA stream; None on a CPU."""
        if self._device.type != "cuda":
            return None
        return self._stream or torch.cuda.current_stream(self._device)

    def entered(self) -> AbstractContextManager[Any]:
        """Context in which work is enqueued on this stream."""
        return nullcontext() if self.cuda_stream is None else torch.cuda.stream(self.cuda_stream)

    def keeps(self, tensor: Tensor) -> None:
        """Keep the tensor's memory from being reused until this stream is done with it."""
        if self.cuda_stream is not None:
            tensor.record_stream(self.cuda_stream)


class StreamEvent:
    """A point in one stream's work that other streams can wait for; record() moves it to a new point."""

    def __init__(self, device: torch.device) -> None:
        self._event = torch.cuda.Event() if device.type == "cuda" else None

    def record(self, stream: DeviceStream) -> None:
        if self._event is not None:
            self._event.record(stream.cuda_stream)

    def awaited_by(self, stream: DeviceStream) -> None:
        """Make the stream's later work wait for the point; the host does not wait."""
        if self._event is not None and stream.cuda_stream is not None:
            stream.cuda_stream.wait_event(self._event)


class Slot(Generic[Key, Place]):
    """One buffer on the device. arrived: its contents have been copied. left: it may be overwritten."""

    def __init__(self, place: Place, device: torch.device) -> None:
        self.place = place
        self.key: Key | None = None
        self.in_use = False
        self.arrived, self.left = StreamEvent(device), StreamEvent(device)


class Prefetcher(Generic[Key, Place]):
    """A few device buffers that host items occupy in turn, each copied there ahead of its use.

    order: the keys in their order of use, repeated cyclically; use in another order only costs time.
    """

    def __init__(self, device: torch.device, places: Sequence[Place], order: Sequence[Key]) -> None:
        self.traffic = Traffic()
        self._order = list(order)
        self._turn = {key: turn for turn, key in enumerate(self._order)}
        self._work = DeviceStream(device)
        self._in, self._out = (DeviceStream(device, separate=True) for _ in range(2))
        self._slots: list[Slot[Key, Place]] = [Slot(place, device) for place in places]
        for slot in self._slots:
            slot.left.record(self._work)
            for tensor in self._memory(slot.place):
                self._in.keeps(tensor)
                self._out.keeps(tensor)

    def _memory(self, place: Place) -> Iterable[Tensor]:
        """The tensors of a device buffer."""
        raise NotImplementedError

    def _load(self, key: Key, place: Place) -> None:
        """Copy an item to a device buffer."""
        raise NotImplementedError

    def _store(self, key: Key, place: Place) -> None:
        """Copy back what a use has changed. By default there is nothing to copy."""

    @contextmanager
    def use(self, key: Key) -> Iterator[Place]:
        """Context that yields an item's device buffer, for use on the current stream; one at a time."""
        self._bring([key, *self._next(key)][: len(self._slots)])
        slot = next(slot for slot in self._slots if slot.key == key)
        slot.in_use = True
        slot.arrived.awaited_by(self._work)
        slot.left.awaited_by(self._work)  # _store may still be reading it from its last use
        try:
            yield slot.place
        finally:
            slot.in_use = False
            slot.left.record(self._work)
        slot.left.awaited_by(self._out)
        with self._out.entered():
            self._store(key, slot.place)
        slot.left.record(self._out)
        self._bring(self._next(key))

    def _next(self, key: Key) -> list[Key]:
        """The next keys in order, as many as there are slots; may end with the key itself."""
        turn, count = self._turn[key], min(len(self._slots), len(self._order))
        return [self._order[(turn + step) % len(self._order)] for step in range(1, count + 1)]

    def _bring(self, keys: Sequence[Key]) -> None:
        """Start copying the keys that are not on the device, in order, over slots that hold none of them."""
        for key in keys:
            if any(slot.key == key for slot in self._slots):
                continue
            slot = next(slot for slot in self._slots if not slot.in_use and slot.key not in keys)
            slot.key = None
            slot.left.awaited_by(self._in)
            with self._in.entered():
                self._load(key, slot.place)
            slot.arrived.record(self._in)
            slot.key = key


class HostLayers(Prefetcher[int, "LayerSlot"]):
    """Some of a transformer's layers with their audio injections, each in one buffer on the host."""

    def __init__(
        self, model: StreamingTransformer, indices: Sequence[int], num_slots: int, device: torch.device
    ) -> None:
        """Move layers of a loaded and fused model to the host; their tensors may be on any device."""
        start = time.perf_counter()
        self._parts = [model.layer_parts(index) for index in range(model.config.num_layers)]
        self.buffers = {index: self._on_host(index, device) for index in sorted(indices)}
        widest = max(
            (self._parts[index] for index in self.buffers), key=lambda parts: layout_of(parts).num_bytes
        )
        slots = [LayerSlot.like(widest, device) for _ in range(num_slots)]
        super().__init__(device, slots, list(self.buffers))
        _tell("layers", self.host_bytes, start)

    def _on_host(self, index: int, device: torch.device) -> Tensor:
        """Move a layer to the host; returns its buffer there."""
        return HostModules(modules_of(self._parts[index]), device).buffer

    @property
    def host_bytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.buffers.values())

    @contextmanager
    def visit(self, index: int) -> Iterator[LayerParts]:
        """Context that yields any layer and its injection on the device, while the next ones are copied."""
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
    """A layer and an injection on the device, whose tensors are views of one buffer.

    Another layer is loaded by overwriting the buffer; one without an injection fills only its beginning.
    Compiled code therefore sees a few extra layers, but never a tensor at a new address.
    """

    buffer: Tensor
    parts: LayerParts

    @classmethod
    def like(cls, parts: LayerParts, device: torch.device) -> LayerSlot:
        """The same modules over a new buffer."""
        tensors, layout = tensors_of(modules_of(parts)).values(), layout_of(parts)
        buffer = torch.zeros(layout.num_bytes, dtype=torch.uint8, device=device)
        views = {
            id(tensor): nn.Parameter(view, requires_grad=False) if isinstance(tensor, nn.Parameter) else view
            for tensor, view in zip(tensors, layout.views(buffer), strict=True)
        }
        return cls(buffer, copy.deepcopy(parts, memo=views))


def modules_of(parts: LayerParts) -> list[nn.Module]:
    """The modules of a layer, followed by its injection's if there is one."""
    return [part for part in parts if part is not None]


def layout_of(parts: LayerParts) -> BufferLayout:
    """The layout of a layer's tensors in one buffer."""
    return BufferLayout.of(tensors_of(modules_of(parts)).values())


def settle_on_host(config: ModelConfig, placement: Placement) -> Settle:
    """A Settle that sends the layers to be offloaded, and their injections, to the host as they load."""
    indices = spread(config.num_layers, placement.layers_on_host)

    def settle(name: str, tensor: Tensor) -> Tensor:
        return tensor.cpu() if config.layer_of(name) in indices else tensor

    return settle if indices else stay


def _tell(what: str, num_bytes: int, start: float) -> None:
    seconds = time.perf_counter() - start
    logger.info("%s in host memory: %.1f GiB, made in %.1f s", what, num_bytes / 2**30, seconds)


class RingMemory:
    """Pinned host memory for rings, reused from run to run, since pinning that much takes long."""

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []
        self._user: Callable[[], object] = lambda: None  # weak reference to the current user

    def take(self, user: object, num_buffers: int, num_bytes: int, device: torch.device) -> list[Tensor]:
        """Lend num_buffers buffers of num_bytes each until user is garbage-collected; contents are undefined.

        Raises: DoesNotFit.
        """
        if self._user() is not None:
            return [host_buffer(num_bytes, device) for _ in range(num_buffers)]
        if [len(buffer) for buffer in self._buffers] != [num_bytes] * num_buffers:
            self._buffers.clear()  # freed before more is allocated
            self._buffers += [host_buffer(num_bytes, device) for _ in range(num_buffers)]
        elif device.type == "cuda":
            torch.cuda.synchronize(device)  # wait for the last user's copies
        self._user = weakref.ref(user)
        return list(self._buffers)


class HostRings(Prefetcher[tuple[int, int], Ring]):
    """All rings of a run in host memory; the device has the one in use, and the next one being copied."""

    def __init__(
        self,
        device: torch.device,
        order: Sequence[tuple[int, int]],
        new_ring: Callable[[], Ring],
        memory: RingMemory,
    ) -> None:
        """Allocate empty rings. order: (layer, step) in order of use. new_ring: makes one on the device."""
        start, slots = time.perf_counter(), [new_ring() for _ in range(RING_SLOTS)]
        # On the host each frame is contiguous, whatever the memory layout on the device.
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
        """Copy back only the appended frames; the others are already on the host."""
        ring = self.rings[key]
        for written in ring.places(place.num_written - ring.num_written):
            for target, source in zip(ring.tensors, place.tensors, strict=True):
                self.traffic.copy_out(target[written], source[written])
        ring.resume(place)
