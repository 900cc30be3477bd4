"""The one block loop: noise in, latents out, block after block, whatever the layout.

Everything random comes from (seed, block) on the CPU, so a result depends neither on the layout nor on how
fast its consumer is. It does not know how a block is denoised or decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from avatar.errors import Cancelled
from avatar.geometry import BLOCK_FRAMES, BLOCK_LATENT_FRAMES, Geometry
from avatar.model.rope import MAX_DISTANCE, MIN_DISTANCE
from avatar.pipeline.denoiser import Conditions, Denoiser, time_slice
from avatar.pipeline.generation import Block
from avatar.pipeline.observer import UNOBSERVED, Observer

NOISE, DISTANCE = range(2)  # independent streams of random numbers


def rollout(
    conditions: Conditions,
    denoiser: Denoiser,
    *,
    num_blocks: int,
    seed: int,
    cancelled: Callable[[], bool] = lambda: False,
    first_block: int = 0,
    anchor: Tensor | None = None,
    origin: int = 0,
    meanwhile: Callable[[], None] = lambda: None,
    is_ready: Callable[[int], bool] = lambda index: True,
    observer: Observer = UNOBSERVED,
) -> Iterator[Tensor]:
    """Yield the latents of each block in order, 16 3 h w float32 on the denoiser's device.

    From the second clip on, the first generated latent frame is the anchor.

    num_blocks: of the whole video. cancelled: asked before each step. first_block, anchor: to go on after a
    stop, with empty rings: the first block still to make, and the first generated latent frame, 16 1 h w.
    origin: the block from which the model counts positions and clips; the motion ends where it begins.
    meanwhile: called once, when the first blocks are under way. is_ready: whether a block may be submitted
    without waiting for its audio; while it may not, those under way are finished.
    Raises: Cancelled.
    """
    geometry, num_steps = denoiser.geometry, denoiser.schedule.num_steps
    refresh_block = origin + geometry.second_clip_block
    if anchor is not None and origin:
        refresh_block = origin  # the first clip was made by another rollout

    def check() -> None:
        if cancelled():
            raise Cancelled("Stopped.")

    waiting = iter([meanwhile])

    def collect() -> Tensor:
        for act in waiting:  # the first time
            denoiser.wait_until_begun()
            act()
        observer.collecting()
        return denoiser.collect(check)

    check()
    if anchor is not None and first_block >= refresh_block:
        conditions = replace(conditions, reference=anchor)
    with observer.prefilling():
        denoiser.begin(conditions)
    under_way = 0
    for index in range(first_block, num_blocks):
        is_refresh = index == refresh_block > first_block
        while under_way and (
            under_way == denoiser.num_in_flight or (is_refresh and anchor is None) or not is_ready(index)
        ):
            latents = collect()
            anchor = latents[:, :1].clone() if anchor is None else anchor
            under_way -= 1
            yield latents
        if is_refresh:
            assert anchor is not None  # the first block has been collected
            denoiser.refresh(anchor)
        denoiser.submit(make_block(conditions, geometry, num_steps, index, seed, origin))
        observer.submitted()
        under_way += 1
    for _ in range(under_way):
        yield collect()


def make_block(
    conditions: Conditions, geometry: Geometry, num_steps: int, index: int, seed: int, origin: int = 0
) -> Block:
    """The inputs of a block: its noise, its distances, and its slice of the conditions."""
    first = index * BLOCK_LATENT_FRAMES
    pose = conditions.pose
    return Block(
        index=index - origin,
        noise=block_noise(geometry, seed, index),
        audio=conditions.audio.frames(index * BLOCK_FRAMES, BLOCK_FRAMES),
        pose=None if pose is None else time_slice(pose, 1, first, BLOCK_LATENT_FRAMES),
        distances=block_distances(num_steps, seed, index),
    )


def block_noise(geometry: Geometry, seed: int, index: int) -> Tensor:
    """Standard normal noise, 16 3 h w float32 on the CPU."""
    state = np.random.SeedSequence((seed, NOISE, index)).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(state[0]))
    return torch.randn(geometry.block_shape, generator=generator)


def block_distances(num_steps: int, seed: int, index: int) -> tuple[int, ...]:
    """The reference's distance at each step, drawn as in training."""
    generator = np.random.default_rng((seed, DISTANCE, index))
    return tuple(generator.integers(MIN_DISTANCE, MAX_DISTANCE, size=num_steps, endpoint=True).tolist())
