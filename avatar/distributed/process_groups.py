"""The ranks of a layout as one of them sees them: who it is, and how it reaches the others."""

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

TENSORS = 1  # the tag of tensors, as messages have 0


@dataclass(frozen=True)
class Group:
    """One rank's view.

    sharing: the ranks that share this one's stage by heads. gathering: the same ranks, for parameters that
    are gathered meanwhile. None where a rank has them to itself. arrivals: the stream that they come by.
    fail: see RankContext.
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
        """Find the others: every rank calls it, once the default process group is there.

        Between GPUs a communicator costs memory and is made at its first use: pairs of neighbours in a
        pipeline, and one for each group that shares a stage.
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
        """Send a tensor to another rank without waiting; the result's wait() does."""
        self.meter.sent(x.nbytes)
        return distributed.isend(x, rank, tag=TENSORS)

    def take(self, shape: tuple[int, ...], dtype: torch.dtype, rank: int) -> Tensor:
        """The next tensor of another rank; on a GPU its stream waits for it, not the host.

        It may come while the stream is still busy with what it was given before.
        """
        with torch.cuda.stream(self.arrivals):  # None: as it is
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
    """Meet the ranks that this one works with; all of them call it."""
    layout = Layout.of(preset).for_model(config)
    context.role = layout.describe(context.rank)
    return Group.join(layout, context.rank, context.device, context.meter, context.fail)


def pieces_of(preset: Preset, device: torch.device) -> CompiledPieces:
    """A rank's code between attentions; the self-test's toy model needs no graphs."""
    return EAGER if preset.requires.weights == "tiny" else CompiledPieces.on(device)
