"""Where a rank sits: which one of how many, on which device, and how it talks to the others."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed
from torch.distributed import ProcessGroup, Store

from avatar.diffusion.parts import best_device
from avatar.errors import DoesNotFit
from avatar.parallel.meter import Meter

log = logging.getLogger(__name__)

FOREVER = timedelta(days=365)  # a rank may wait long for its work; whoever watches the ranks ends a hang


@dataclass(frozen=True)
class Seat:
    """One rank's place. control: a group on the CPU for small messages, None with a single rank."""

    rank: int
    world_size: int
    device: torch.device
    meter: Meter
    control: ProcessGroup | None = None

    @classmethod
    def take(cls, rank: int, world_size: int, device: torch.device, store: Store | None) -> Seat:
        """Join the other ranks, which look for each other in the store; NCCL between GPUs, else gloo."""
        meter = Meter(device)
        if world_size == 1:
            return cls(rank, world_size, device, meter)
        backend = "nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(
            backend, store=store, rank=rank, world_size=world_size, timeout=FOREVER
        )
        control = distributed.new_group(backend="gloo", timeout=FOREVER)
        return cls(rank, world_size, device, meter, control)


def device_of(local_rank: int, num_local: int, may_be_cpu: bool) -> torch.device:
    """The GPU of a rank among those of its machine, made the current one; the CPU for a toy model.

    Raises: DoesNotFit when there are not so many GPUs.
    """
    num_gpus = torch.cuda.device_count()
    if num_gpus >= num_local:
        device = best_device(local_rank)
        torch.cuda.set_device(device)
        return device
    if may_be_cpu:
        if num_local > 1:
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // num_local))
        return torch.device("cpu")
    raise DoesNotFit(
        f"{num_local} ranks need as many GPUs; PyTorch sees {num_gpus}.",
        "Take fewer with --num_gpus_dit, or show it more with CUDA_VISIBLE_DEVICES.",
    )
