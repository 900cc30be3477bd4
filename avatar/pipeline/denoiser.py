"""Denoise blocks of noise to latents: the Denoiser protocol, and the implementation for a single device."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from avatar.errors import BadInput
from avatar.geometry import Geometry
from avatar.model.transformer import StreamingTransformer
from avatar.pipeline.device import uploaded
from avatar.pipeline.flow_match_euler import Schedule
from avatar.pipeline.generation import Block, GenerationState, OpenBlock, Times
from avatar.pipeline.layer_stack import CompiledPieces, LayerStack
from avatar.pipeline.observer import UNOBSERVED, Observer
from avatar.pipeline.offload.host_layers import HostLayers, RingMemory, Traffic


class AudioSource(Protocol):
    """Speech features of every speaker, one per video frame; len() is the number of speakers."""

    def __len__(self) -> int: ...

    def frames(self, start: int, num_frames: int) -> Tensor:
        """S 25 C num_frames from frame start on, zeros past the end; called in ascending order."""
        ...


@dataclass(frozen=True)
class HeldAudio:
    """An AudioSource over complete features: S 25 C T."""

    features: Tensor

    def __len__(self) -> int:
        return len(self.features)

    def frames(self, start: int, num_frames: int) -> Tensor:
        """See AudioSource."""
        return time_slice(self.features, -1, start, num_frames)


@dataclass(frozen=True)
class Conditions:
    """The conditions of a generation, encoded once, except the audio, which is encoded block by block.

    text: L C, the prompt without padding. reference: 16 1 h w. motion: 16 19 h w. pose: 16 F h w for the
    whole video (followed by zeros), or None. masks: S 3 rows columns in 0..1, where in the frame each speaker
    is; required for several speakers. Raises: BadInput for missing masks.
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
            raise BadInput(f"{num_speakers} speakers but {num_masks} masks.", "Provide one mask per speaker.")


class Denoiser(Protocol):
    """Turns blocks of noise into latents, on one device or spread over several, with the same result."""

    geometry: Geometry
    schedule: Schedule
    num_in_flight: int  # how many blocks may be submitted before the first of them is collected

    def begin(self, conditions: Conditions) -> None:
        """Start a generation with empty rings and new text and condition caches."""
        ...

    def wait_until_begun(self) -> None:
        """Wait until the first block's work has been enqueued on the device, or none will be."""
        ...

    def refresh(self, reference: Tensor) -> None:
        """Replace the reference latent, 16 1 h w, for the blocks submitted from now on."""
        ...

    def submit(self, block: Block) -> None:
        """Submit the next block."""
        ...

    def is_finished(self, wait_s: float) -> bool:
        """Whether there is no use in putting collect() off; waits up to wait_s for the oldest block."""
        ...

    def collect(self, check: Callable[[], None]) -> Tensor:
        """The latents of the oldest submitted block, 16 3 h w float32; check is called before each step."""
        ...


class LocalDenoiser:
    """All layers on one device, for one block at a time, or for several, each a step behind the one before.

    With several blocks, each layer processes all of them in turn, so an offloaded layer is copied only once
    for all. The result is bit-identical.
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
        observer: Observer = UNOBSERVED,
    ) -> None:
        """host_layers: of the same transformer. ring_memory: from an earlier run, to be reused.

        diagonal: as many blocks in progress as there are steps.
        """
        self.transformer, self.geometry, self.schedule = transformer, geometry, schedule
        self.num_in_flight = schedule.num_steps if diagonal else 1
        self._host_layers, self._observer = host_layers, observer
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
        self._pace = StepLimiter(self.device)

    @property
    def traffic(self) -> Traffic:
        """Bytes copied between host and device for offloading so far."""
        movers = [mover for mover in (self._host_layers, self.stack.host_rings) if mover is not None]
        return sum((mover.traffic for mover in movers), Traffic())

    @torch.no_grad()
    def begin(self, conditions: Conditions) -> None:
        """See Denoiser. Everything that depends on neither block nor anchor is computed here."""
        model = self.transformer
        self._submitted.clear()
        self._generation = GenerationState(
            transformer=model,
            geometry=self.geometry,
            schedule=self.schedule,
            device=self.device,
            dtype=model.dtype,
            times=Times.embed(model, self.schedule),
            motion=conditions.motion,
            masks=conditions.masks,
        )
        self._anchor = 0
        self._anchors = {0}
        self.stack.begin(model.embed_text(conditions.text.to(self.device)), len(conditions.text))
        self._prefill(conditions.reference)

    def wait_until_begun(self) -> None:
        """See Denoiser. Nothing to wait for: collect() itself enqueues the work."""

    def is_finished(self, wait_s: float) -> bool:
        """See Denoiser. Always: collect() itself does the work."""
        return True

    @torch.no_grad()
    def refresh(self, reference: Tensor) -> None:
        """See Denoiser. The old anchor's condition stays while blocks that attend to it are in progress."""
        self._anchor += 1
        self._release_anchors()
        self._anchors.add(self._anchor)
        self._prefill(reference)

    @torch.no_grad()
    def submit(self, block: Block) -> None:
        """See Denoiser."""
        audio = self.transformer.embed_audio(uploaded(block.audio, self.device))
        opened = self._generation.open(block, audio, self._anchor)
        opened.latents = uploaded(block.noise, self.device)
        self._submitted.append(opened)

    def collect(self, check: Callable[[], None] = lambda: None) -> Tensor:
        """See Denoiser."""
        oldest = self._submitted[0]
        while oldest.step < self.schedule.num_steps:
            self._pace.wait()
            check()
            due = self._due()
            with self._observer.stepping(len(due)):
                self.advance(due)
            self._pace.mark()
        self._submitted.popleft()
        self._release_anchors()
        self._observer.denoised(self.traffic)
        return oldest.latents

    @torch.no_grad()
    def advance(self, due: Sequence[OpenBlock]) -> None:
        """Do each block's next step; the steps must not depend on each other."""
        generation = self._generation
        tokens = [generation.embed(opened) for opened in due]
        items = [generation.item(opened, opened.step) for opened in due]
        for opened, x in zip(due, self.stack.forward_diagonal(tokens, items), strict=True):
            generation.advance(opened, x, opened.step)
            opened.step += 1

    def _due(self) -> list[OpenBlock]:
        """The oldest block, and each later one whose predecessor is a step ahead; oldest first."""
        due, done_before = [], self.schedule.num_steps
        for opened in list(self._submitted)[: self.num_in_flight]:
            if opened.step < done_before:
                due.append(opened)
            done_before = opened.step
        return due

    def _release_anchors(self) -> None:
        """Free the conditions that no current or future block attends to."""
        wanted = {self._anchor} | {opened.anchor for opened in self._submitted}
        for anchor in self._anchors - wanted:
            self.stack.release(anchor)
        self._anchors &= wanted

    def _prefill(self, reference: Tensor) -> None:
        tokens = self._generation.embed_condition(reference.to(self.device))
        self._generation.prefill(self.stack, tokens, self._anchor)


class StepLimiter:
    """Keeps the host at most one step ahead of the GPU, so that a cancellation takes effect within a step."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: deque[torch.cuda.Event] = deque()

    def wait(self) -> None:
        """Wait until at most one marked step is unfinished."""
        while len(self._marks) > 1:
            self._marks.popleft().synchronize()

    def mark(self) -> None:
        """Record that a step has been enqueued."""
        if self._device.type == "cuda":
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(self._device))
            self._marks.append(event)


def time_slice(values: Tensor, axis: int, start: int, length: int) -> Tensor:
    """`length` entries along an axis from start on, with zeros past its end."""
    end = values.shape[axis]
    part = values.narrow(axis, min(start, end), max(0, min(length, end - start)))
    missing = length - part.shape[axis]
    if not missing:
        return part
    shape = list(part.shape)
    shape[axis] = missing
    return torch.cat([part, part.new_zeros(shape)], dim=axis)
