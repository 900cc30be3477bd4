"""What the work items of one generation share, and the arithmetic in front of the layers and behind them.

One device with all layers does it all; a rank does as much of it as its layers and its tokens are.
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

    noise: 16 3 h w float32, on the CPU. audio: S 25 C 12. pose: 16 3 h w or None. distances: for each step
    the reference's distance in latent frames.
    """

    index: int
    noise: Tensor
    audio: Tensor
    pose: Tensor | None
    distances: tuple[int, ...]

    @property
    def first_frame(self) -> int:
        """The index in the video of the block's first latent frame."""
        return self.index * BLOCK_LATENT_FRAMES


@dataclass
class OpenBlock:
    """A block under way: its latents at the current noise level, its next step, and what its steps share."""

    block: Block
    latents: Tensor
    pose: Tensor | None
    audio: AudioTokens
    table: Tensor
    anchor: int
    step: int = 0


class TokenShare(Protocol):
    """Which of a generation's tokens are on this device."""

    def of_block(self, x: Tensor) -> Tensor:
        """Those of a block's tokens, N ..., that are here."""
        ...

    def of_condition(self, x: Tensor) -> Tensor:
        """Those of the condition's tokens, N ..., that are here."""
        ...

    def all_of_block(self, x: Tensor) -> Tensor:
        """All of a block's tokens, N C, out of those that are here."""
        ...


class AllTokens:
    """Every token is here."""

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
    """Every step's time as the layers see it, S+1 6 C, and as the head does, S+1 C; the last is time 0.

    Time 0 is the condition's. Both are float32.
    """

    layers: Tensor
    head: Tensor

    @classmethod
    def embed(cls, transformer: StreamingTransformer, schedule: Schedule) -> Times:
        """The times of a schedule's steps."""
        times = [transformer.embed_time(t) for t in (*schedule.timesteps, 0.0)]
        return cls(torch.stack([time.layers for time in times]), torch.stack([time.head for time in times]))


@dataclass
class GenerationState:
    """A generation that has begun; see the module.

    motion: 16 19 h w, None where the condition is not embedded here. masks: S F rows columns, or None for a
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
        """The condition's tokens here, N C, of a reference latent, 16 1 h w on the device."""
        assert self.motion is not None
        return self.tokens.of_condition(self.transformer.embed_condition(reference, self.motion))

    def prefill(self, stack: LayerStack, x: Tensor, anchor: int) -> Tensor:
        """Run the condition's tokens through the layers; see LayerStack.prefill."""
        return stack.prefill(x, self.times.layers[-1], self.condition_table.at(REFERENCE_TIME), anchor)

    def open(self, block: Block, audio: AudioTokens, anchor: int) -> OpenBlock:
        """A block before its first step, its noise still where it is."""
        return OpenBlock(
            block=block,
            latents=block.noise,
            pose=None if block.pose is None else uploaded(block.pose, self.device),
            audio=audio,
            table=self.table_of(block.first_frame),
            anchor=anchor,
        )

    def table_of(self, first_frame: int) -> Tensor:
        """The rotary table of a block's tokens here."""
        return self.tokens.of_block(block_table(self.geometry, first_frame, self._head_dim, self.device))

    def embed(self, opened: OpenBlock) -> Tensor:
        """A block's tokens here, N C, at its current noise level."""
        return self.tokens.of_block(self.transformer.embed_block(opened.latents, opened.pose))

    def item(self, opened: OpenBlock, step: int) -> WorkItem:
        """The work item (block, step) as the layers see it."""
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
        """Take the Euler step of a block whose tokens, N C, have been through all layers."""
        patches = self.tokens.all_of_block(self.transformer.head(x, self.times.head[step]))
        velocity = unpatchify(patches, self.geometry)
        opened.latents = self.schedule.advance(opened.latents, velocity, step)

    @property
    def _head_dim(self) -> int:
        return self.transformer.config.head_dim
