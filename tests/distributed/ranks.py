"""Processes that talk over gloo, or NCCL, started once: each takes part in case after case."""

from __future__ import annotations

import dataclasses
import faulthandler
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from avatar.distributed.process_groups import Group
from avatar.distributed.rank_meter import RankMeter
from avatar.planning.layout import Layout

NUM_RANKS = 5
LIMIT_S = 300.0


@dataclass(frozen=True)
class Case:
    """What every rank of a layout does, rank 0 giving a result; the ranks beyond the layout look on."""

    name: str
    layout: Layout
    play: Callable[[Group, dict[str, Any]], Any]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


def play(
    cases: list[Case], folder: Path, num_ranks: int = NUM_RANKS, on_gpus: bool = False
) -> dict[str, Any]:
    """Rank 0's results by the names of the cases; an exception's traceback instead of a result."""
    context = multiprocessing.get_context(_start_method(on_gpus))
    if not on_gpus:
        context.set_forkserver_preload(
            ["torch.distributed.fsdp", "tests.distributed.streams"]
        )  # once for all
    processes = [
        context.Process(target=_rank, args=(rank, num_ranks, cases, folder, on_gpus))
        for rank in range(num_ranks)
    ]
    for process in processes:
        process.start()
    deadline = time.monotonic() + LIMIT_S
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    for process in processes:
        process.kill()
        process.join()
    results = {}
    for case in cases:
        file = folder / f"{case.name}.pt"
        results[case.name] = torch.load(file, weights_only=False) if file.exists() else "no result"
    return results


def _start_method(on_gpus: bool) -> str:
    """CUDA does not survive a fork, and who collects the tests has asked it for its devices."""
    return "spawn" if on_gpus else "forkserver"


def _rank(rank: int, num_ranks: int, cases: list[Case], folder: Path, on_gpus: bool) -> None:
    os.dup2(os.open(folder / f"rank{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), sys.stderr.fileno())
    faulthandler.enable()
    faulthandler.dump_traceback_later(LIMIT_S - 10)
    torch.set_num_threads(1)
    device = torch.device("cuda", rank) if on_gpus else torch.device("cpu")
    if on_gpus:
        torch.cuda.set_device(device)
        torch.backends.cudnn.allow_tf32 = False
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpus else "gloo",
        init_method=f"file://{folder / 'store'}",
        rank=rank,
        world_size=num_ranks,
        timeout=timedelta(seconds=LIMIT_S),
    )
    for case in cases:
        group = Group.join(case.layout, rank, device, RankMeter(device))
        if rank >= case.layout.world_size:
            continue
        try:
            result = case.play(group, case.options)
        except BaseException:
            result = traceback.format_exc()
        if rank == 0:
            torch.save(result, folder / "draft.pt")
            (folder / "draft.pt").rename(folder / f"{case.name}.pt")
        elif isinstance(result, str):
            sys.stderr.write(f"{case.name}: {result}")
            return
    distributed.destroy_process_group()
