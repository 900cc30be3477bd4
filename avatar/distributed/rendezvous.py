"""A rank's identity: its number, world size and device; and how ranks find each other."""

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

# NCCL uses a multiprocessor and a few MB of buffers per channel between two GPUs. With two channels, a
# block's tokens take 2 ms from stage to stage; groups, which wait for every exchange, get more. With NCCL's
# default a communicator took 0.5 GiB more on an H200.
CHANNELS = ("NCCL_MAX_P2P_NCHANNELS", "NCCL_MAX_NCHANNELS")
PIPELINE_CHANNELS, GROUP_CHANNELS = 2, 8
FOREVER = timedelta(days=365)  # a rank may wait long for work; the supervisor, not a timeout, ends a hang


def log_fault(error: BaseException) -> None:
    """The default for RankContext.fail, without a supervisor: only log an error in a thread."""
    log.error("a thread failed", exc_info=error)


@dataclass
class RankContext:
    """One rank's identity. place: its device's name. role: a description of its role, once that is known.

    fail: ends this rank, from any of its threads, and reports the error.
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
        """Join the other ranks through the store; tensors go over NCCL between GPUs, otherwise over gloo."""
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
    """Rank 0 opens the store through which ranks find each other: only at this address, on any free port.

    Raises: OSError when the machine does not have the address.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as listening:  # by default, the store listens on all addresses
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
    """Connect another rank to the same store."""
    return TCPStore(host, port, world_size, is_master=False, timeout=FOREVER, wait_for_workers=False)


def limit_channels(layout: Layout) -> None:
    """Limit NCCL's channels in this process, unless the environment already sets them."""
    channels = GROUP_CHANNELS if layout.group_size > 1 else PIPELINE_CHANNELS
    for name in CHANNELS:
        os.environ.setdefault(name, str(channels))


def device_of(local_rank: int, num_local: int, may_be_cpu: bool) -> torch.device:
    """Select a rank's GPU by its local rank and make it current; a toy model may use the CPU.

    Raises: DoesNotFit when there are too few GPUs.
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
