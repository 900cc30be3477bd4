"""Blocks of noise to latents: what every denoiser must do, and the one for a single device."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from avatar.errors import BadInput
from avatar.geometry import BLOCK_LATENT_FRAMES, Geometry
from avatar.model.audio_encoder import AudioTokens
from avatar.model.rope import REFERENCE_TIME, ConditionTable, block_table, reference_time
from avatar.model.transformer import StreamingTransformer
from avatar.pipeline.device import uploaded
from avatar.pipeline.layer_stack import CompiledPieces, LayerStack, WorkItem
from avatar.pipeline.offload.host_layers import HostLayers, RingMemory, Traffic
from avatar.pipeline.schedule import Schedule


class AudioSource(Protocol):
    """Speech features of every speaker, one for each video frame; len() is the number of speakers."""

    def __len__(self) -> int: ...

    def frames(self, start: int, num_frames: int) -> Tensor:
        """S 25 C num_frames from frame start on, zeros past the end; asked for in ascending order."""
        ...


@dataclass(frozen=True)
class HeldAudio:
    """Features that are all there: S 25 C T."""

    features: Tensor

    def __len__(self) -> int:
        return len(self.features)

    def frames(self, start: int, num_frames: int) -> Tensor:
        """See AudioSource."""
        return time_slice(self.features, -1, start, num_frames)


@dataclass(frozen=True)
class Conditions:
    """What a generation is conditioned on, encoded once, the audio as it goes.

    text: L C of the prompt's own tokens. reference: 16 1 h w. motion: 16 19 h w. pose: 16 F h w for the whole
    video (zeros follow), or None. masks: S 3 rows columns in 0..1, which speaker speaks where; needed when
    there are several. Raises: BadInput for missing masks.
    """

    text: Tensor
    reference: Tensor
    motion: Tensor
    audio: AudioSource
    pose: Tensor | None = None
    masks: Tensor | None = None

    def __post_init__(self) -> None:
        num_speakers = len(self.audio)
        num_masks = 0 if self.masks is None else len(self.masks)
        if num_masks != num_speakers and (num_masks or num_speakers > 1):
            raise BadInput(
                f"{num_speakers} speakers but {num_masks} masks.", "Give one mask for each speaker."
            )


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


class Denoiser(Protocol):
    """Turns blocks of noise into latents, on one device or spread over several, with the same result."""

    geometry: Geometry
    schedule: Schedule
    num_in_flight: int  # blocks that may be submitted before the first of them is collected

    def begin(self, conditions: Conditions) -> None:
        """Start a generation: fresh rings, text and condition caches."""
        ...

    def refresh(self, reference: Tensor) -> None:
        """Replace the reference latent, 16 1 h w, for the blocks submitted from now on."""
        ...

    def submit(self, block: Block) -> None:
        """Hand over the next block."""
        ...

    def collect(self, check: Callable[[], None]) -> Tensor:
        """The latents of the oldest submitted block, 16 3 h w float32; check is called before each step."""
        ...


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


class LocalDenoiser:
    """All layers on one device, one block after another; or several, each a step behind the one before.

    Then every layer works on all of them in turn: one that waits on the host comes once for all. The result
    is the same to the bit.
    """

    def __init__(
        self,
        transformer: StreamingTransformer,
        geometry: Geometry,
        schedule: Schedule,
        *,
        pieces: CompiledPieces | None = None,
        ring_dtype: torch.dtype | None = None,
        host_layers: HostLayers | None = None,
        rings_on_host: bool = False,
        ring_memory: RingMemory | None = None,
        diagonal: bool = False,
    ) -> None:
        """host_layers: of the same transformer. ring_memory: of an earlier run, to be used again.

        diagonal: several blocks under way, as many as steps.
        """
        self.transformer, self.geometry, self.schedule = transformer, geometry, schedule
        self.num_in_flight = schedule.num_steps if diagonal else 1
        self._host_layers = host_layers
        self.device = transformer.device
        self.stack = LayerStack(
            transformer,
            geometry,
            steps=range(schedule.num_steps),
            layers=range(transformer.config.num_layers),
            device=transformer.device,
            dtype=transformer.dtype,
            pieces=pieces or CompiledPieces(),
            ring_dtype=ring_dtype,
            visit=host_layers.visit if host_layers is not None else None,
            rings_on_host=rings_on_host,
            ring_memory=ring_memory or RingMemory(),
            diagonal=diagonal,
        )
        self._submitted: deque[OpenBlock] = deque()
        self._pace = Pace(self.device)

    @property
    def traffic(self) -> Traffic:
        """What crossed the bus for offloading so far."""
        movers = [mover for mover in (self._host_layers, self.stack.host_rings) if mover is not None]
        return sum((mover.traffic for mover in movers), Traffic())

    @torch.no_grad()
    def begin(self, conditions: Conditions) -> None:
        """See Denoiser. All that depends on neither block nor anchor is computed here."""
        model, head_dim = self.transformer, self.transformer.config.head_dim
        self._submitted.clear()
        self._motion = conditions.motion.to(self.device)
        self._masks = mask_tokens(conditions.masks, self.device, model.dtype)
        self._times = [model.embed_time(t) for t in self.schedule.timesteps]
        self._condition_time = model.embed_time(0.0)
        self._condition_table = ConditionTable(self.geometry, head_dim, self.device)
        self._anchor = 0
        self._anchors = {0}
        self.stack.begin(model.embed_text(conditions.text.to(self.device)), len(conditions.text))
        self._prefill(conditions.reference)

    @torch.no_grad()
    def refresh(self, reference: Tensor) -> None:
        """See Denoiser. The old anchor's condition stays while blocks that attend to it are under way."""
        self._anchor += 1
        self._release_anchors()
        self._anchors.add(self._anchor)
        self._prefill(reference)

    @torch.no_grad()
    def submit(self, block: Block) -> None:
        """See Denoiser."""
        self._submitted.append(
            OpenBlock(
                block=block,
                latents=self._upload(block.noise),
                pose=None if block.pose is None else self._upload(block.pose),
                audio=self.transformer.embed_audio(self._upload(block.audio)),
                table=block_table(
                    self.geometry, block.first_frame, self.transformer.config.head_dim, self.device
                ),
                anchor=self._anchor,
            )
        )

    def collect(self, check: Callable[[], None] = lambda: None) -> Tensor:
        """See Denoiser."""
        oldest = self._submitted[0]
        while oldest.step < self.schedule.num_steps:
            self._pace.wait()
            check()
            self.advance(self._due())
            self._pace.mark()
        self._submitted.popleft()
        self._release_anchors()
        return oldest.latents

    @torch.no_grad()
    def advance(self, due: Sequence[OpenBlock]) -> None:
        """Do each block's next step; they may need nothing of each other."""
        model, times = self.transformer, [self._times[opened.step] for opened in due]
        tokens = [model.embed_block(opened.latents, opened.pose) for opened in due]
        tokens = self.stack.forward_diagonal(tokens, [self._item(opened) for opened in due])
        for opened, x, time in zip(due, tokens, times, strict=True):
            velocity = model.velocity(x, time.head, self.geometry)
            opened.latents = self.schedule.advance(opened.latents, velocity, opened.step)
            opened.step += 1

    def _due(self) -> list[OpenBlock]:
        """The oldest block, and those of the next whose predecessor is a step ahead; oldest first."""
        due, done_before = [], self.schedule.num_steps
        for opened in list(self._submitted)[: self.num_in_flight]:
            if opened.step < done_before:
                due.append(opened)
            done_before = opened.step
        return due

    def _release_anchors(self) -> None:
        """Free the conditions that neither a block under way nor one to come attends to."""
        wanted = {self._anchor} | {opened.anchor for opened in self._submitted}
        for anchor in self._anchors - wanted:
            self.stack.release(anchor)
        self._anchors &= wanted

    def _item(self, opened: OpenBlock) -> WorkItem:
        block, step = opened.block, opened.step
        time = reference_time(block.first_frame, block.distances[step])
        return WorkItem(
            block=block.index,
            step=step,
            anchor=opened.anchor,
            modulation=self._times[step].layers,
            table=opened.table,
            condition_table=self._condition_table.at(time),
            audio=opened.audio,
            masks=self._masks,
        )

    def _prefill(self, reference: Tensor) -> None:
        tokens = self.transformer.embed_condition(reference.to(self.device), self._motion)
        table = self._condition_table.at(REFERENCE_TIME)
        self.stack.prefill(tokens, self._condition_time.layers, table, self._anchor)

    def _upload(self, values: Tensor) -> Tensor:
        return uploaded(values, self.device)


class Pace:
    """Keeps the host at most one step ahead of the GPU, so that a cancel takes effect within a step."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: deque[torch.cuda.Event] = deque()

    def wait(self) -> None:
        """Wait until at most one marked step is unfinished."""
        while len(self._marks) > 1:
            self._marks.popleft().synchronize()

    def mark(self) -> None:
        """A step has been enqueued."""
        if self._device.type == "cuda":
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(self._device))
            self._marks.append(event)


def mask_tokens(masks: Tensor | None, device: torch.device, dtype: torch.dtype) -> Tensor | None:
    """Speakers' masks, S F rows columns, as S N 1."""
    return None if masks is None else masks.to(device, dtype).flatten(1)[..., None]


def time_slice(values: Tensor, axis: int, start: int, length: int) -> Tensor:
    """`length` entries of an axis from start on, zeros past its end."""
    end = values.shape[axis]
    part = values.narrow(axis, min(start, end), max(0, min(length, end - start)))
    missing = length - part.shape[axis]
    if not missing:
        return part
    shape = list(part.shape)
    shape[axis] = missing
    return torch.cat([part, part.new_zeros(shape)], dim=axis)
