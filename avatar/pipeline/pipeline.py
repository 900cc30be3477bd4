"""The diffusion engine: conditions once, then block after block of frames; see engine.FrameSource."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Generator, Hashable, Iterator
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
from avatar.pipeline.conditions import AnyTrack, SpeechTrack
from avatar.pipeline.decode import StreamingDecoder
from avatar.pipeline.denoise import Conditions
from avatar.pipeline.denoising import Denoising, LocalDenoising
from avatar.pipeline.device import downloaded
from avatar.pipeline.framing import framed, resized, size_within, video_size
from avatar.pipeline.layer_stack import EAGER, CompiledPieces
from avatar.pipeline.live import LiveTrack, as_request, live_frames
from avatar.pipeline.models import CheckpointModels, Models
from avatar.pipeline.observer import UNOBSERVED, Observer
from avatar.pipeline.offload.pinned import pinned_bytes
from avatar.pipeline.resume import anchor_at, anchor_of, with_motion
from avatar.pipeline.rollout import rollout
from avatar.planning.placement import Placement
from avatar.planning.plan import Plan
from avatar.preset import Preset
from avatar.request import LiveRequest, Request
from avatar.runtime.engine import SELF_TEST_LABEL, FrameItem
from avatar.runtime.fallback import lowered
from avatar.runtime.live import LiveFrames
from avatar.runtime.resume_state import ResumeState

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
        self._held: Hashable = None  # the models that the parts are
        self._planned: tuple[Request, Placement] | None = None  # of the plan that was asked for last
        self._state: ResumeState | None = None  # of the run that goes on
        self._announced_codes: set[str] = set()  # of a run: what was announced
        # a toy model needs no graphs, which take longer to build than it to run
        self._compiles = compiles and not is_tiny
        self.pieces = CompiledPieces()
        self.label = SELF_TEST_LABEL if is_tiny else ""

    @property
    def plan_binds(self) -> bool:
        """Whether a run whose plan does not fit must step down before it begins."""
        return self._denoising.plan_binds

    def frames(self, request: Request, cancelled: Callable[[], bool]) -> Iterator[FrameItem]:
        """Yield uint8 (T, H, W, 3) RGB, a block at a time.

        Raises: AvatarError, Cancelled; RuntimeError where memory ran out (see is_out_of_memory): then this
        process is of no more use, and whoever supervises it goes on with a fresh one, a rung lower.
        """
        size = video_size(request)
        self._state = state = ResumeState.of(request, size)
        self._announced_codes.clear()
        self._observer.run_begins()

        def stopped() -> bool:
            self._observer.checked()
            return cancelled()

        try:
            placement = self._placement(request)
            yield from self._made(lowered(request), placement, size, state, stopped)
            state.leave(request)
            yield from self._observer.notices()
        finally:
            self._state = None
            if not self._models.lasting:
                self._parts = None
            self._denoising.run_ends()

    def live(
        self, request: LiveRequest, sound: Iterator[np.ndarray], cancelled: Callable[[], bool]
    ) -> Iterator[LiveFrames | Notice | Progress]:
        """See LiveSource: a block of frames each time. A machine that is too slow takes fewer steps, then a
        smaller size, which is reported.

        Raises: AvatarError, Cancelled; RuntimeError where memory ran out, as frames().
        """
        whole = as_request(request)
        size = video_size(whole)
        self._state = state = ResumeState.of(whole, size)
        self._announced_codes.clear()
        self._observer.run_begins()

        def stopped() -> bool:
            self._observer.waiting()
            return cancelled()

        track = LiveTrack(sound, stopped)

        def make(lighter: Request) -> Generator[FrameItem]:
            placement = self._placement(lighter)
            return self._spoken(lighter, placement, size, state, track, stopped, track.is_ready)

        try:
            yield from request.notices
            yield from live_frames(whole, track, make)
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
        """The plan that a run of this request follows: asked for as it begins, and followed by frames()."""
        preset = lowered(request).preset
        planned = self._denoising.plan(
            preset,
            held=self._placement_held(preset),
            fixed=self._models.placement,
            speech_s=request.speech_frames / FPS,
            share=CAUTION ** (request.part.num_full if request.part else 0),
        )
        self._planned = request, planned.placement
        return planned

    def pinned_bytes(self) -> int:
        """Host memory that is pinned for this process's GPUs."""
        return pinned_bytes()

    def _made(
        self,
        request: Request,
        placement: Placement,
        stream: Size,
        state: ResumeState,
        cancelled: Callable[[], bool],
    ) -> Iterator[FrameItem]:
        """What is left to make, as the request's preset makes it, in frames of the stream's size."""
        with SpeechReader(request.speech) as speech:
            track = SpeechTrack(speech.listen, speech.num_samples_16k)
            yield from self._spoken(request, placement, stream, state, track, cancelled)

    def _spoken(
        self,
        request: Request,
        placement: Placement,
        stream: Size,
        state: ResumeState,
        track: AnyTrack,
        cancelled: Callable[[], bool],
        is_ready: Callable[[int], bool] = lambda block: True,
    ) -> Generator[FrameItem]:
        """The same, of a speaker's speech. is_ready: see rollout."""
        check = checking(cancelled)

        def loading() -> None:
            self._observer.loading()
            check()

        yield Progress(Phase.LOADING)
        parts = self._loaded(request, placement, loading)
        yield Progress(Phase.ENCODING)
        check()
        size = size_within(stream, request.preset)
        portrait = framed(request.portrait, stream, size, request.work)
        conditions = parts.conditions.encode(portrait, request.prompt, size, [track])
        conditions = with_motion(conditions, state, request.portrait, stream, size, parts.vae)
        anchor = anchor_at(state, size, parts.vae)
        self._observer.encoded()
        yield Progress(Phase.GENERATING)
        for frames in self._decoded(parts, request, size, conditions, state, anchor, cancelled, is_ready):
            yield from self._announced()
            pixels = downloaded(frames[: state.frames_left]).numpy()
            yield state.show(resized(pixels, stream))

    def _announced(self) -> Iterator[Notice]:
        """What this device turned out not to do as fast as others, once in a run."""
        for code, text in missing():
            if code not in self._announced_codes:
                self._announced_codes.add(code)
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
        is_ready: Callable[[int], bool],
    ) -> Iterator[Tensor]:
        """Frames of each block, T H W 3 on the device: as they come, or all at the end."""
        decoder = self._decoder(parts)
        start = decoder.go_on if state.goes_on else decoder.prime

        def prime() -> None:
            with self._observer.priming():
                start(conditions.motion)

        latents = partial(self._latents, parts, request, size, conditions, state, anchor, cancelled, is_ready)
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
        is_ready: Callable[[int], bool],
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
            is_ready=is_ready,
            observer=self._observer,
        )
        for block in latents:
            if state.anchor is None:
                state.anchor = anchor_of(block)
            yield block

    def _decoder(self, parts: Components) -> StreamingDecoder:
        compile = self._compiles and parts.device.type == "cuda" and compiles(parts.device)
        return StreamingDecoder(parts.vae, compile=compile)

    def _loaded(self, request: Request, placement: Placement, check: Check) -> Components:
        """All models, loaded unless held as this request wants them."""
        preset = request.preset
        held = self._placement_held(preset)
        if held is None or not held.serves(placement):
            self._free()
            parts = self._models.load(request, placement, check)
            self._denoising.prepare(parts, check)
            self._use(parts, preset)
        assert self._parts is not None
        self._parts.placement = placement
        self._denoising.prepare(self._parts, check)
        return self._parts

    def _placement_held(self, preset: Preset) -> Placement | None:
        """How the parts are held; None where they would not do for the preset."""
        return self._parts.placement if self._parts is not None and self._held == preset.models else None

    def _placement(self, request: Request) -> Placement:
        """What waits on the host in this run: by the plan that was asked for, if one was."""
        planned, self._planned = self._planned, None
        if planned is not None and planned[0] == request:
            return planned[1]
        return self._models.placement or self.plan_for(request).placement

    def _use(self, parts: Components, preset: Preset) -> None:
        self._parts, self._held = parts, preset.models
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
