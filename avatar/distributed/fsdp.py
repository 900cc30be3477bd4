"""FSDP2: parameters are sharded over the ranks of a group, and each layer is gathered just before its use.

A single stream has no batch to split, so the ranks of this layout split every item by heads, as in ulysses.
It saves memory, at the cost of transferring all weights at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from avatar.distributed.process_groups import Group
from avatar.distributed.rank_meter import RankMeter
from avatar.model.transformer import LayerParts, StreamingTransformer

Fill = Callable[[Callable[[str], bool]], StreamingTransformer]
"""The transformer with the tensors that a predicate selects by name, the others on the meta device."""


def shard_layers(fill: Fill, group: Group) -> StreamingTransformer:
    """A transformer whose layers are sharded one by one as they load: no rank ever holds two full layers."""
    assert group.gathering is not None
    mesh = DeviceMesh.from_group(group.gathering, group.device.type)
    model = fill(lambda name: layer_of(name, group.layout.config.audio_inject_layers) is None)
    for index in range(model.config.num_layers):
        part = fill(lambda name, index=index: layer_of(name, model.config.audio_inject_layers) == index)  # type: ignore[misc]
        part.layer(index).self_attn.fuse()
        for name in names_of_layer(model, index):
            model.set_submodule(name, part.get_submodule(name))
        fully_shard([model.get_submodule(name) for name in names_of_layer(model, index)], mesh=mesh)
    return model


def names_of_layer(model: StreamingTransformer, index: int) -> list[str]:
    """Module names of a layer and, if it injects audio, of its injection."""
    entry = model.audio_injector.index_of.get(index)
    injection = [] if entry is None else [f"injector.{entry}", f"injector_adain_layers.{entry}"]
    return [f"blocks.{index}", *(f"audio_injector.{name}" for name in injection)]


def layer_of(name: str, inject_layers: tuple[int, ...]) -> int | None:
    """The layer that a tensor belongs to, by its name; None if it is not in a layer."""
    room, *rest = name.split(".")
    if room == "blocks":
        return int(rest[0])
    if room == "audio_injector":
        return inject_layers[int(rest[1])]
    return None


class LayerGatherer:
    """Gathers each layer's parameters while it is visited, and prefetches the next layer's."""

    def __init__(self, transformer: StreamingTransformer, meter: RankMeter) -> None:
        self._parts = [transformer.layer_parts(index) for index in range(transformer.config.num_layers)]
        self._meter = meter
        self._coming: dict[int, object] = {}
        modules = [names_of_layer(transformer, index) for index in range(len(self._parts))]
        self._sent_bytes = [
            sum(_sent_bytes(transformer.get_submodule(name)) for name in names) for names in modules
        ]

    @contextmanager
    def visit(self, index: int) -> Iterator[LayerParts]:
        """See LayerStack."""
        layer = self._parts[index].layer
        assert isinstance(layer, FSDPModule)
        for wanted in (index, (index + 1) % len(self._parts)):
            self._fetch(wanted)
        self._coming.pop(index).wait()  # type: ignore[attr-defined]
        yield self._parts[index]
        layer.reshard()

    def let_go(self) -> None:
        """Drop the prefetched layer, which will not be visited."""
        for index in list(self._coming):
            layer = self._parts[index].layer
            assert isinstance(layer, FSDPModule)
            self._coming.pop(index).wait()  # type: ignore[attr-defined]
            layer.reshard()

    def _fetch(self, index: int) -> None:
        layer = self._parts[index].layer
        assert isinstance(layer, FSDPModule)
        if index not in self._coming:
            self._coming[index] = layer.unshard(async_op=True)
            self._meter.sent(self._sent_bytes[index])


def _sent_bytes(module: nn.Module) -> int:
    """Bytes that this rank sends to the others each time that its shards are gathered."""
    shards = [parameter for parameter in module.parameters() if isinstance(parameter, DTensor)]
    return sum(shard.to_local().nbytes * (shard.device_mesh.size() - 1) for shard in shards)
