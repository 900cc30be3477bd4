"""Where a rank sits: which one of how many, on which device, and how it meets the others."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed
from torch.distributed import Store, TCPStore

from avatar.distributed.rank_meter import RankMeter
from avatar.errors import DoesNotFit
from avatar.hardware.host import num_cores
from avatar.pipeline.device import best_device
from avatar.pipeline.device_budget import place_of
from avatar.planning.layout import Layout

log = logging.getLogger(__name__)

# NCCL takes a multiprocessor and some MB of buffers for each channel between two GPUs. A block's tokens pass
# from stage to stage in 2 ms with two; groups, which wait for every exchange, get more. With NCCL's own
# choice a communicator took 0.5 GiB more of an H200.
CHANNELS = ("NCCL_MAX_P2P_NCHANNELS", "NCCL_MAX_NCHANNELS")
PIPELINE_CHANNELS, GROUP_CHANNELS = 2, 8
FOREVER = timedelta(days=365)  # a rank may wait long for its work; whoever watches the ranks ends a hang


def log_fault(error: BaseException) -> None:
    """What a rank that nobody watches does about a fault in a thread."""
    log.error("a thread failed", exc_info=error)


@dataclass
class RankContext:
    """One rank's place among all. place: its device in words. role: its part, once that is known.

    fail: ends this rank, from any of its threads, and tells why.
    """

    rank: int
    world_size: int
    device: torch.device
    meter: RankMeter
    place: str
    role: str = ""
    fail: Callable[[BaseException], object] = log_fault

    @classmethod
    def take(cls, rank: int, layout: Layout, device: torch.device, store: Store | None) -> RankContext:
        """Join the other ranks, which meet at the store; tensors go by NCCL between GPUs, else by gloo."""
        world_size, on_gpu = layout.world_size, device.type == "cuda"
        if world_size > 1:
            backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
            if on_gpu:
                limit_channels(layout)
            distributed.init_process_group(
                backend, store=store, rank=rank, world_size=world_size, timeout=FOREVER
            )
        return cls(rank, world_size, device, RankMeter(device), place_of(device))


def open_store(host: str, world_size: int) -> TCPStore:
    """The store at which ranks meet, opened by rank 0: at this address alone, on any port that is free.

    Raises: OSError when the machine has no such address.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    with socket.socket(
        family, kind, protocol
    ) as listening:  # left to itself, the store listens at all of them
        listening.bind(address)
        listening.listen()
        port = listening.getsockname()[1]
        return TCPStore(
            host,
            port,
            world_size,
            is_master=True,
            timeout=FOREVER,
            wait_for_workers=False,
            master_listen_fd=listening.detach(),
        )


def reach_store(host: str, port: int, world_size: int) -> TCPStore:
    """The same store, as another rank reaches it."""
    return TCPStore(host, port, world_size, is_master=False, timeout=FOREVER, wait_for_workers=False)


def limit_channels(layout: Layout) -> None:
    """Have NCCL use few channels in this process, unless its environment says how many."""
    channels = GROUP_CHANNELS if layout.group_size > 1 else PIPELINE_CHANNELS
    for name in CHANNELS:
        os.environ.setdefault(name, str(channels))


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
        torch.set_num_threads(max(1, min(torch.get_num_threads(), num_cores() // num_local)))
        return torch.device("cpu")
    raise DoesNotFit(
        f"{num_local} ranks need as many GPUs; PyTorch sees {num_gpus}.",
        "Take fewer with --num_gpus_dit, or show it more with CUDA_VISIBLE_DEVICES.",
    )
