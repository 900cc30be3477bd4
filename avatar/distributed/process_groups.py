"""One rank's view of a layout: its own rank, and the process groups and channels to the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup

from avatar.checkpoints.transformer_config import ModelConfig
from avatar.distributed.p2p import MessageChannel
from avatar.distributed.rank_meter import RankMeter
from avatar.distributed.rendezvous import FOREVER, RankContext, log_fault
from avatar.pipeline.layer_stack import EAGER, CompiledPieces
from avatar.planning.layout import Layout
from avatar.preset import Preset

TENSORS = 1  # tag of tensors; messages have tag 0


@dataclass(frozen=True)
class Group:
    """One rank's view of its layout.

    sharing: process group of the ranks that split this rank's stage by heads. gathering: a second group of
    the same ranks, for gathering parameters at the same time. Both None if the rank has no such peers.
    arrivals: the stream on which tensors are received. fail: see RankContext.
    """

    layout: Layout
    rank: int
    device: torch.device
    meter: RankMeter
    post: MessageChannel
    sharing: ProcessGroup | None = None
    gathering: ProcessGroup | None = None
    arrivals: torch.cuda.Stream | None = None
    fail: Callable[[BaseException], object] = log_fault

    @classmethod
    def join(
        cls,
        layout: Layout,
        rank: int,
        device: torch.device,
        meter: RankMeter,
        fail: Callable[[BaseException], object] = log_fault,
    ) -> Group:
        """Create the process groups; every rank calls it, once the default process group exists.

        Between GPUs a communicator costs memory and is created at first use: one per pair of neighbours in a
        pipeline, and one per group that shares a stage.
        """
        sharing = gathering = None
        if layout.group_size > 1:
            for stage in range(layout.num_stages):
                ranks = list(layout.ranks_of(stage))
                made = [_new_group(ranks) for _ in range(2 if layout.kind == "fsdp" else 1)]
                if rank in ranks:
                    sharing, gathering = made[0], made[-1] if layout.kind == "fsdp" else None
        arrivals = torch.cuda.Stream(device) if device.type == "cuda" else None
        return cls(
            layout, rank, device, meter, MessageChannel(meter.sent), sharing, gathering, arrivals, fail
        )

    def pass_on(self, x: Tensor, rank: int) -> object:
        """Send a tensor to another rank without blocking; call wait() on the result."""
        self.meter.sent(x.nbytes)
        return distributed.isend(x, rank, tag=TENSORS)

    def take(self, shape: tuple[int, ...], dtype: torch.dtype, rank: int) -> Tensor:
        """Receive the next tensor from another rank; on a GPU the current stream waits, not the host.

        The transfer can overlap with work that is already on the current stream.
        """
        with torch.cuda.stream(self.arrivals):  # no effect if None
            x = torch.empty(shape, dtype=dtype, device=self.device)
            work = distributed.irecv(x, rank, tag=TENSORS)
        assert work is not None
        work.wait()
        if self.arrivals is not None:
            x.record_stream(torch.cuda.current_stream(self.device))
        return x


def _new_group(ranks: list[int]) -> ProcessGroup:
    made = distributed.new_group(ranks, timeout=FOREVER)
    assert made is not None
    return made


def join(preset: Preset, config: ModelConfig, context: RankContext) -> Group:
    """Join the group of a preset's layout; all ranks call it."""
    layout = Layout.of(preset).for_model(config)
    context.role = layout.describe(context.rank)
    return Group.join(layout, context.rank, context.device, context.meter, context.fail)


def pieces_of(preset: Preset, device: torch.device) -> CompiledPieces:
    """A rank's CompiledPieces; the self-test's toy model runs without graphs."""
    return EAGER if preset.requires.weights == "tiny" else CompiledPieces.on(device)
