"""What of a run waits in the host's memory instead of on the GPU. Plain data; the planner decides it."""

from __future__ import annotations

from dataclasses import dataclass, replace

RING_SLOTS = 2  # of rings that wait on the host, so many are on the GPU: one at work, one on its way


@dataclass(frozen=True)
class Placement:
    """Everything on the GPU, unless said otherwise; what waits on the host waits in pinned memory.

    layers_on_host: how many of the transformer's layers, spread evenly among the others, so that their copies
    have time to come. layers_ahead: how many of those are on the GPU or on their way at a time, the one at
    work counted; 2 or more. rings_on_host: the rings come layer by layer, and the block's own frames go back.
    side_models_on_host: the speech encoder and the VAE's encoder are on the GPU only while they work.
    speech_on_cpu: the speech encoder works on the CPU instead, some seconds for a minute of speech.
    diagonal: as many blocks under way as there are steps, so that a layer comes from the host once for all.
    """

    layers_on_host: int = 0
    layers_ahead: int = 2
    rings_on_host: bool = False
    side_models_on_host: bool = False
    diagonal: bool = False
    speech_on_cpu: bool = False

    @property
    def offloads(self) -> bool:
        """Whether weights or rings cross the bus for every block."""
        return self.layers_on_host > 0 or self.rings_on_host

    def serves(self, other: Placement) -> bool:
        """Whether models that are loaded so need not be loaded again for the other."""
        return replace(self, rings_on_host=other.rings_on_host, diagonal=other.diagonal) == other


ALL_ON_GPU = Placement()


def spread(num_layers: int, layers_on_host: int) -> tuple[int, ...]:
    """Which layers wait on the host: evenly among the others, so that each copy has time to come."""
    return tuple(index * num_layers // layers_on_host for index in range(layers_on_host))
