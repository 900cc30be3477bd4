"""The diffusion engine: conditions once, then block after block of frames; see engine.FrameSource."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from avatar.errors import Cancelled
from avatar.events import Notice, Phase, Progress
from avatar.geometry import FPS, Size
from avatar.media.speech import SpeechReader
from avatar.model.device_checks import compiles, missing
from avatar.model.weights.loading import Check
from avatar.pipeline.components import Components
from avatar.pipeline.conditions import SpeechTrack
from avatar.pipeline.decode import StreamingDecoder
from avatar.pipeline.denoise import Conditions
from avatar.pipeline.denoising import Denoising, LocalDenoising
from avatar.pipeline.device import best_device, downloaded
from avatar.pipeline.device_budget import placement_on
from avatar.pipeline.framing import framed, resized, size_within, video_size
from avatar.pipeline.layer_stack import EAGER, CompiledPieces
from avatar.pipeline.models import CheckpointModels, Models
from avatar.pipeline.observer import UNOBSERVED, Observer
from avatar.pipeline.offload.pinned import pinned_bytes
from avatar.pipeline.resume import anchor_at, anchor_of, with_motion
from avatar.pipeline.rollout import rollout
from avatar.planning.placement import Placement
from avatar.planning.plan import Plan
from avatar.preset import Preset
from avatar.request import Request
from avatar.runtime.engine import SELF_TEST_LABEL, Frames
from avatar.runtime.fallback import lowered
from avatar.runtime.resume_state import ResumeState
from avatar.settings import Memory

log = logging.getLogger(__name__)

CAUTION = 0.9  # of what was counted on before, each time that memory ran out all the same


class DiffusionPipeline:
    """Live Avatar: conditions, blocks of latents, frames; its models stay loaded between requests."""

    def __init__(
        self,
        preset: Preset,
        weights: Path | None = None,
        *,
        models: Models | None = None,
        denoising: Denoising | None = None,
        observer: Observer = UNOBSERVED,
        compiles: bool = True,
    ) -> None:
        """preset: it tells whether this is the self-test, with its toy model.

        weights: the checkpoint's folder, when named. models: where they come from; None: from the checkpoint.
        denoising: where it happens; None: on this device. compiles: whether graphs may be built.
        """
        is_tiny = preset.requires.weights == "tiny"
        self._weights = weights
        self._models = models or CheckpointModels(preset, weights)
        self._denoising = denoising or LocalDenoising(weights)
        self._observer = observer
        self._parts: Components | None = None
        self._held: tuple[str, str] | None = None  # the settings that the parts were loaded with
        self._state: ResumeState | None = None  # of the run that goes on
        self._told: set[str] = set()  # of a run: what was announced
        # a toy model needs no graphs, which take longer to build than it to run
        self._compiles = compiles and not is_tiny
        self.pieces = CompiledPieces()
        self.label = SELF_TEST_LABEL if is_tiny else ""

    @property
    def plan_binds(self) -> bool:
        """Whether a run whose plan does not fit must step down before it begins."""
        return self._denoising.plan_binds

    def frames(self, request: Request, cancelled: Callable[[], bool]) -> Iterator[Frames | Notice | Progress]:
        """Yield uint8 (T, H, W, 3) RGB, a block at a time.

        Raises: AvatarError, Cancelled; RuntimeError where memory ran out (see is_out_of_memory): then this
        process is of no more use, and whoever supervises it goes on with a fresh one, a rung lower.
        """
        size = video_size(request)
        self._state = state = ResumeState.of(request, size)
        self._told.clear()
        self._observer.run_begins()

        def stopped() -> bool:
            self._observer.checked()
            return cancelled()

        try:
            yield from self._made(lowered(request), size, state, stopped)
            state.leave(request)
            yield from self._observer.notices()
        finally:
            self._state = None
            if not self._models.lasting:
                self._parts = None
            self._denoising.run_ends()

    def anchor(self) -> np.ndarray | None:
        """The first latent frame of the run that goes on, once generated, 16 1 h w float32."""
        return None if self._state is None else self._state.anchor

    def close(self) -> None:
        """See FrameSource."""
        self._parts = None

    def plan_for(self, request: Request) -> Plan:
        """The plan that a run of this request would follow."""
        _, placement = self._placements(request)
        return self._denoising.plan(lowered(request).preset, placement, request.speech_frames / FPS)

    def pinned_bytes(self) -> int:
        """Host memory that is pinned for this process's GPUs."""
        return pinned_bytes()

    def _made(
        self, request: Request, stream: Size, state: ResumeState, cancelled: Callable[[], bool]
    ) -> Iterator[Frames | Notice | Progress]:
        """What is left to make, as the request's preset makes it, in frames of the stream's size."""
        check = checking(cancelled)

        def loading() -> None:
            self._observer.loading()
            check()

        yield Progress(Phase.LOADING)
        parts = self._loaded(request, loading)
        yield Progress(Phase.ENCODING)
        check()
        size = size_within(stream, request.preset)
        portrait = framed(request.portrait, stream, size, request.work)
        with SpeechReader(request.speech) as speech:
            track = SpeechTrack(speech.listen, speech.num_samples_16k)
            conditions = parts.conditions.encode(portrait, request.prompt, size, [track])
            conditions = with_motion(conditions, state, request.portrait, stream, size, parts.vae)
            anchor = anchor_at(state, size, parts.vae)
            self._observer.encoded()
            yield Progress(Phase.GENERATING)
            for frames in self._decoded(parts, request, size, conditions, state, anchor, cancelled):
                yield from self._announced()
                pixels = downloaded(frames[: state.frames_left]).numpy()
                yield state.show(resized(pixels, stream))

    def _announced(self) -> Iterator[Notice]:
        """What this device turned out not to do as fast as others, once in a run."""
        for code, text in missing():
            if code not in self._told:
                self._told.add(code)
                yield Notice(f"slow_{code}", text, "warning")

    def _decoded(
        self,
        parts: Components,
        request: Request,
        size: Size,
        conditions: Conditions,
        state: ResumeState,
        anchor: Tensor | None,
        cancelled: Callable[[], bool],
    ) -> Iterator[Tensor]:
        """Frames of each block, T H W 3 on the device: as they come, or all at the end."""
        decoder = self._decoder(parts)
        start = decoder.go_on if state.goes_on else decoder.prime

        def prime() -> None:
            with self._observer.priming():
                start(conditions.motion)

        latents = partial(self._latents, parts, request, size, conditions, state, anchor, cancelled)
        if request.preset.memory.enable_online_decode:
            blocks = latents(prime)
        else:
            blocks = iter([block.cpu() for block in latents(lambda: None)])
            self._denoising.release(parts)
            prime()
        check = checking(cancelled)
        for block in blocks:
            check()
            with self._observer.decoding():
                frames = decoder.decode(block)
            self._observer.decoded(frames)
            yield frames

    def _latents(
        self,
        parts: Components,
        request: Request,
        size: Size,
        conditions: Conditions,
        state: ResumeState,
        anchor: Tensor | None,
        cancelled: Callable[[], bool],
        meanwhile: Callable[[], None],
    ) -> Iterator[Tensor]:
        """Latents of each block; the rings live as long as this iterator. meanwhile: see rollout."""
        first = state.next_block
        latents = rollout(
            conditions,
            self._denoising.denoiser(request.preset, parts, size, self.pieces, self._observer),
            num_blocks=first + state.blocks_left,
            seed=request.seed,
            cancelled=cancelled,
            first_block=first,
            anchor=anchor,
            origin=first,
            meanwhile=meanwhile,
            observer=self._observer,
        )
        for block in latents:
            if state.anchor is None:
                state.anchor = anchor_of(block)
            yield block

    def _decoder(self, parts: Components) -> StreamingDecoder:
        compile = self._compiles and parts.device.type == "cuda" and compiles(parts.device)
        return StreamingDecoder(parts.vae, compile=compile)

    def _loaded(self, request: Request, check: Check) -> Components:
        """All models, loaded unless held as this request wants them."""
        preset = request.preset
        held, placement = self._placements(request)
        if held is None or not held.serves(placement):
            self._free()
            parts = self._models.load(request, placement, check)
            self._denoising.prepare(parts, check)
            self._use(parts, preset.memory)
        assert self._parts is not None
        self._parts.placement = placement
        self._denoising.prepare(self._parts, check)
        return self._parts

    def _placements(self, request: Request) -> tuple[Placement | None, Placement]:
        """How the parts are held, None where they would not do for the request; and how it wants them."""
        preset = lowered(request).preset
        parts = self._parts if self._held == held_as(preset.memory) else None
        held = None if parts is None else parts.placement
        if self._models.placement is not None:
            return held, self._models.placement
        share = CAUTION ** (request.part.num_full if request.part else 0)
        return held, placement_on(best_device(), preset, held, self._weights, share)

    def _use(self, parts: Components, memory: Memory) -> None:
        self._parts, self._held = parts, held_as(memory)
        self.pieces = CompiledPieces.on(parts.device) if self._compiles else EAGER

    def _free(self) -> None:
        """Give back everything that the device holds for us."""
        if self._parts is not None:
            self._parts.release_transformer()  # whoever else holds these parts
        self._parts = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def checking(cancelled: Callable[[], bool]) -> Check:
    """What raises Cancelled when cancelled() says yes."""

    def check() -> None:
        if cancelled():
            raise Cancelled("The run was stopped.")

    return check


def held_as(memory: Memory) -> tuple[str, str]:
    """The settings that decide how models are loaded; the others may change from run to run."""
    return memory.weight_dtype, memory.text_encoder
