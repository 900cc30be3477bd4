"""What of a run waits in the host's memory instead of on the GPU. Plain data; the planner decides it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Placement:
    """Everything on the GPU, unless said otherwise; what waits on the host waits in pinned memory.

    layers_on_host: how many of the transformer's layers, spread evenly among the others, so that their copies
    have time to come. layers_ahead: how many of those are on the GPU or on their way at a time, the one at work
    counted; 2 or more. rings_on_host: the rings come layer by layer, and the block's own frames go back.
    side_models_on_host: the speech encoder and the VAE's encoder are on the GPU only while they work.
    """

    layers_on_host: int = 0
    layers_ahead: int = 2
    rings_on_host: bool = False
    side_models_on_host: bool = False


ALL_ON_GPU = Placement()
