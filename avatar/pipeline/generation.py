"""The state shared by all work items of one generation, and the arithmetic before and after the layers.

A device with all layers does all of it; a rank does the part that belongs to its layers and tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from avatar.geometry import BLOCK_LATENT_FRAMES, Geometry
from avatar.model.audio_injection import AudioTokens
from avatar.model.rope import REFERENCE_TIME, ConditionTable, block_table, reference_time
from avatar.model.transformer import StreamingTransformer, unpatchify
from avatar.pipeline.device import uploaded
from avatar.pipeline.flow_match_euler import Schedule
from avatar.pipeline.layer_stack import LayerStack, WorkItem


@dataclass(frozen=True)
class Block:
    """One block to denoise.

    noise: 16 3 h w float32, on the CPU. audio: S 25 C 12. pose: 16 3 h w or None. distances: the reference's
    distance at each step, in latent frames.
    """

    index: int
    noise: Tensor
    audio: Tensor
    pose: Tensor | None
    distances: tuple[int, ...]

    @property
    def first_frame(self) -> int:
        """The video index of the block's first latent frame."""
        return self.index * BLOCK_LATENT_FRAMES


@dataclass
class OpenBlock:
    """A block in progress: its latents at the current noise level, its next step, and data for all steps."""

    block: Block
    latents: Tensor
    pose: Tensor | None
    audio: AudioTokens
    table: Tensor
    anchor: int
    step: int = 0


class TokenShare(Protocol):
    """Selects the tokens of a generation that are on this device."""

    def of_block(self, x: Tensor) -> Tensor:
        """The block tokens on this device, out of all, N ..."""
        ...

    def of_condition(self, x: Tensor) -> Tensor:
        """The condition tokens on this device, out of all, N ..."""
        ...

    def all_of_block(self, x: Tensor) -> Tensor:
        """All of a block's tokens, N C, gathered from the ranks that share them."""
        ...


class AllTokens:
    """The TokenShare of a device that has every token."""

    def of_block(self, x: Tensor) -> Tensor:
        """See TokenShare."""
        return x

    def of_condition(self, x: Tensor) -> Tensor:
        """See TokenShare."""
        return x

    def all_of_block(self, x: Tensor) -> Tensor:
        """See TokenShare."""
        return x


@dataclass(frozen=True)
class Times:
    """The time embeddings of all steps, for the layers, S+1 6 C, and for the head, S+1 C; both float32.

    The last one is time 0, for the condition.
    """

    layers: Tensor
    head: Tensor

    @classmethod
    def embed(cls, transformer: StreamingTransformer, schedule: Schedule) -> Times:
        """Embed the times of a schedule's steps."""
        times = [transformer.embed_time(t) for t in (*schedule.timesteps, 0.0)]
        return cls(torch.stack([time.layers for time in times]), torch.stack([time.head for time in times]))


@dataclass
class GenerationState:
    """The state of a running generation; see the module.

    motion: 16 19 h w, or None if another device embeds the condition. masks: S F rows columns, or None for a
    single speaker.
    """

    transformer: StreamingTransformer
    geometry: Geometry
    schedule: Schedule
    device: torch.device
    dtype: torch.dtype
    times: Times
    motion: Tensor | None
    masks: Tensor | None
    tokens: TokenShare = field(default_factory=AllTokens)

    def __post_init__(self) -> None:
        self.condition_table = ConditionTable(self.geometry, self._head_dim, self.device)
        if self.motion is not None:
            self.motion = self.motion.to(self.device)
        if self.masks is not None:
            masks = self.masks.to(self.device, self.dtype).flatten(1)[..., None]
            self.masks = torch.stack([self.tokens.of_block(mask) for mask in masks])  # S N 1

    def embed_condition(self, reference: Tensor) -> Tensor:
        """This device's condition tokens, N C, for a reference latent, 16 1 h w on the device."""
        assert self.motion is not None
        return self.tokens.of_condition(self.transformer.embed_condition(reference, self.motion))

    def prefill(self, stack: LayerStack, x: Tensor, anchor: int) -> Tensor:
        """Run the condition's tokens through the layers; see LayerStack.prefill."""
        return stack.prefill(x, self.times.layers[-1], self.condition_table.at(REFERENCE_TIME), anchor)

    def open(self, block: Block, audio: AudioTokens, anchor: int) -> OpenBlock:
        """Open a block before its first step; its noise is not uploaded."""
        return OpenBlock(
            block=block,
            latents=block.noise,
            pose=None if block.pose is None else uploaded(block.pose, self.device),
            audio=audio,
            table=self.table_of(block.first_frame),
            anchor=anchor,
        )

    def table_of(self, first_frame: int) -> Tensor:
        """The rotary table of this device's tokens of a block."""
        return self.tokens.of_block(block_table(self.geometry, first_frame, self._head_dim, self.device))

    def embed(self, opened: OpenBlock) -> Tensor:
        """This device's tokens of a block, N C, at its current noise level."""
        return self.tokens.of_block(self.transformer.embed_block(opened.latents, opened.pose))

    def item(self, opened: OpenBlock, step: int) -> WorkItem:
        """The WorkItem for (block, step)."""
        block = opened.block
        time = reference_time(block.first_frame, block.distances[step])
        return WorkItem(
            block=block.index,
            step=step,
            anchor=opened.anchor,
            modulation=self.times.layers[step],
            table=opened.table,
            condition_table=self.condition_table.at(time),
            audio=opened.audio,
            masks=self.masks,
        )

    def advance(self, opened: OpenBlock, x: Tensor, step: int) -> None:
        """Apply the Euler step to a block whose tokens, N C, have passed through all layers."""
        patches = self.tokens.all_of_block(self.transformer.head(x, self.times.head[step]))
        velocity = unpatchify(patches, self.geometry)
        opened.latents = self.schedule.advance(opened.latents, velocity, step)

    @property
    def _head_dim(self) -> int:
        return self.transformer.config.head_dim
