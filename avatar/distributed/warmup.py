"""Warm-up: run dummy blocks through a rank's layers until every graph that real blocks need has been built.

While PyTorch builds graphs it waits for the GPU, at one point with Python's GIL held. If the GPU were then
waiting for tokens from a rank that is still building its own graphs, this rank would be blocked for as long,
and the ranks would build one after another. So each builds its graphs before it waits for a block's data.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from avatar.checkpoints.transformer_config import ModelConfig
from avatar.geometry import BLOCK_LATENT_FRAMES, Geometry
from avatar.model.audio_injection import AudioTokens
from avatar.pipeline.layer_stack import LayerStack, WorkItem


def rehearse(
    stack: LayerStack, item: WorkItem, num_tokens: int, num_condition_tokens: int, tick: Callable[[], None]
) -> None:
    """Run dummy blocks until all rings are full, and one more; call the stack's begin() again afterwards.

    num_tokens, num_condition_tokens: this rank's own. tick: called after each item.
    """
    dim = stack.transformer.config.dim
    condition, x = (
        torch.zeros(count, dim, dtype=stack.dtype, device=stack.device)
        for count in (num_condition_tokens, num_tokens)
    )
    stack.prefill(condition, item.modulation, item.condition_table, item.anchor)
    for _ in range(blocks_until_full(stack.geometry) + 1):
        for step in stack.steps:  # each may have different layers
            stack.forward(x, item._replace(step=step))
            tick()


def blocks_until_full(geometry: Geometry) -> int:
    """Blocks after which a ring is full."""
    return -(-geometry.past_frames // BLOCK_LATENT_FRAMES)


def no_audio(config: ModelConfig, num_speakers: int, dtype: torch.dtype, device: torch.device) -> AudioTokens:
    """A block's audio tokens, all zero."""
    shape = num_speakers, BLOCK_LATENT_FRAMES
    local = torch.zeros(*shape, config.num_audio_token + 1, config.dim, dtype=dtype, device=device)
    return AudioTokens(local, torch.zeros(*shape, config.dim, dtype=dtype, device=device))
