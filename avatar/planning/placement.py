"""Which parts of a run are offloaded from the GPU to the host. Plain data; the planner decides it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

RING_SLOTS = 2  # GPU buffers for offloaded rings: one in use, one being copied


@dataclass(frozen=True)
class Placement:
    """Everything is on the GPU unless a field says otherwise; offloaded parts are kept in pinned memory.

    layers_on_host: how many of the transformer's layers, spread evenly among the others, so that each copy
    has time to finish. layers_ahead: how many of those are on the GPU or being copied at a time, including
    the current one; 2 or more. rings_on_host: rings are copied in layer by layer, and the block's own frames
    are copied back. side_models_on_host: the speech encoder and the VAE's encoder are on the GPU only while
    they run. speech_on_cpu: the speech encoder runs on the CPU, some seconds per minute of speech.
    diagonal: as many blocks in flight as there are steps, so that one copy of a layer serves all of them.
    layers_in_blocks: offloaded layers are kept as the blocks of a GGUF file, and dequantised on the GPU each
    time that they are copied there.
    """

    layers_on_host: int = 0
    layers_ahead: int = 2
    rings_on_host: bool = False
    side_models_on_host: bool = False
    diagonal: bool = False
    speech_on_cpu: bool = False
    layers_in_blocks: bool = False

    @property
    def offloads(self) -> bool:
        """Whether weights or rings cross the bus for every block."""
        return self.layers_on_host > 0 or self.rings_on_host

    def serves(self, other: Placement) -> bool:
        """Whether models loaded with this placement can run the other without reloading."""
        return replace(self, rings_on_host=other.rings_on_host, diagonal=other.diagonal) == other


ALL_ON_GPU = Placement()


@cache
def spread(num_layers: int, layers_on_host: int) -> tuple[int, ...]:
    """Which layers are offloaded: evenly among the others, so that each copy has time to finish."""
    return tuple(index * num_layers // layers_on_host for index in range(layers_on_host))
