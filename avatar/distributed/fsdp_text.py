"""The prompt encoder sharded over all ranks (FSDP2); each rank frees its shard after one prompt.

Every block is sharded as it loads and gathered while in use, so no rank holds more than a few full blocks.
"""

from __future__ import annotations

import gc

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from avatar.distributed.rendezvous import FOREVER, RankContext
from avatar.model.text_encoder import TextEncoder, TextWeights


def encode_together(weights: TextWeights, ids: Tensor, dtype: torch.dtype, context: RankContext) -> Tensor:
    """A prompt's hidden states, N D on the device; see TextEncoder. All ranks must call it with the same ids.

    The communicator is created for this one prompt only, as it takes GPU memory.
    """
    ranks = distributed.new_group(timeout=FOREVER)
    assert ranks is not None
    text = (
        sharded(weights, dtype, DeviceMesh.from_group(ranks, context.device.type), context)
        .encode(ids)
        .clone()
    )
    gc.collect()  # FSDP's objects form reference cycles
    if text.is_cuda:
        torch.cuda.synchronize(text.device)
        torch.cuda.empty_cache()
    distributed.all_reduce(torch.zeros(1))  # a barrier on the CPU group: no rank leaves while others receive
    distributed.destroy_process_group(ranks)
    return text


def sharded(weights: TextWeights, dtype: torch.dtype, mesh: DeviceMesh, context: RankContext) -> TextEncoder:
    """Load the encoder block by block, keeping only this rank's shard of each."""

    def shard(module: nn.Module) -> None:
        fully_shard(module, mesh=mesh)
        context.meter.tick()

    return weights.load(context.device, dtype, spread=shard)
