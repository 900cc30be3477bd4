"""The prompt encoder spread over all ranks (FSDP2): each keeps its part for one prompt, and lets it go.

Every block is sharded as it is loaded and gathered while it is used, so no rank holds more than a few whole.
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
    """A prompt's hidden states, N D on the device: see TextEncoder. All ranks call it, with the same ids.

    The ranks' communicator is made for this one prompt: between GPUs it takes memory.
    """
    ranks = distributed.new_group(timeout=FOREVER)
    assert ranks is not None
    text = (
        sharded(weights, dtype, DeviceMesh.from_group(ranks, context.device.type), context)
        .encode(ids)
        .clone()
    )
    gc.collect()  # what shards blocks and gathers them refers to itself in circles
    if text.is_cuda:
        torch.cuda.synchronize(text.device)
        torch.cuda.empty_cache()
    distributed.all_reduce(torch.zeros(1))  # by the CPU's group: nobody hangs up while another still receives
    distributed.destroy_process_group(ranks)
    return text


def sharded(weights: TextWeights, dtype: torch.dtype, mesh: DeviceMesh, context: RankContext) -> TextEncoder:
    """The encoder of which this rank keeps its part alone, block after block as they load."""

    def shard(module: nn.Module) -> None:
        fully_shard(module, mesh=mesh)
        context.meter.tick()

    return weights.load(context.device, dtype, spread=shard)
