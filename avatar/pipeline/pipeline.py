"""The diffusion engine: encode conditions once, then generate block by block; see engine.FrameSource."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from avatar.errors import Cancelled
from avatar.events import Activity, Notice, Phase, Progress
from avatar.geometry import FPS, Size
from avatar.media.growing import end_frame, open_speech
from avatar.media.prompt import prompt_for
from avatar.model.device_checks import compiles, missing
from avatar.model.weights.loading import Check
from avatar.pipeline.components import Components
from avatar.pipeline.conditioning import AnyTrack, VoiceTrack
from avatar.pipeline.decode import StreamingDecoder
from avatar.pipeline.denoiser import Conditions
from avatar.pipeline.denoiser_choice import Denoising, LocalDenoising
from avatar.pipeline.device import downloaded
from avatar.pipeline.frame_size import framed, resized, size_within, video_size
from avatar.pipeline.layer_stack import EAGER, CompiledPieces
from avatar.pipeline.live import LiveTrack, as_request, live_frames, starts_lighter
from avatar.pipeline.model_loading import CheckpointModels, Models
from avatar.pipeline.observer import UNOBSERVED, Observer
from avatar.pipeline.offload.pinned import pinned_bytes
from avatar.pipeline.pose import with_pose
from avatar.pipeline.resume import anchor_at, anchor_of, with_motion
from avatar.pipeline.rollout import AT_ONCE, Arrival, rollout
from avatar.pipeline.speakers import speaker_masks, speech_tracks
from avatar.pipeline.warm_up import WarmUp
from avatar.planning.placement import Placement
from avatar.planning.plan import Plan
from avatar.planning.weight_format import advice_here, settled_here
from avatar.preset import Preset
from avatar.request import LiveRequest, Request
from avatar.runtime.engine import SELF_TEST_LABEL, FrameItem
from avatar.runtime.live_protocol import LiveFrames
from avatar.runtime.out_of_memory import lowered
from avatar.runtime.resume_state import ResumeState

log = logging.getLogger(__name__)

CAUTION = 0.9  # factor on the memory planned with, each time that memory ran out despite the plan


class DiffusionPipeline:
    """Live Avatar's pipeline from conditions to latents to frames; models stay loaded between requests."""

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
        """preset: determines whether this is the self-test, with its toy model.

        weights: the checkpoint's folder, if given. models: their source; None for the checkpoint.
        denoising: where to denoise; None for this device. compiles: whether torch.compile may be used.
        """
        is_tiny = preset.requires.weights == "tiny"
        self._weights = weights
        self._models = models or CheckpointModels(preset, weights)
        self._denoising = denoising or LocalDenoising(weights)
        self._observer = observer
        self._parts: Components | None = None
        self._held: Hashable = None  # identifies the models loaded in _parts
        self._planned: tuple[Request, Placement] | None = None  # from the last plan_for
        self._state: ResumeState | None = None  # of the current run
        self._announced_codes: set[str] = set()  # notices yielded in the current run
        self._lighter: dict[Preset, Preset] = {}  # live presets, and what this machine kept up with instead
        # For a toy model, building graphs takes longer than running without them.
        self._compiles = compiles and not is_tiny
        self.pieces = CompiledPieces()
        self._warm_up: WarmUp | None = None
        self._compiled_sizes: set[Size] = set()
        self.label = SELF_TEST_LABEL if is_tiny else ""

    @property
    def plan_binds(self) -> bool:
        """Whether a run whose plan does not fit must fall back to a smaller setting before it begins."""
        return self._denoising.plan_binds

    def warm(self, device: torch.device) -> None:
        """Prepare compiled code beside whatever comes first; for a process that will run on this device."""
        if self._compiles and device.type == "cuda":
            self._warm_up = WarmUp(device)

    def frames(self, request: Request, cancelled: Callable[[], bool]) -> Iterator[FrameItem]:
        """Yield uint8 (T, H, W, 3) RGB, one block at a time.

        Raises: AvatarError, Cancelled; RuntimeError when out of memory (see is_out_of_memory): this process
        must then be replaced, and its supervisor continues in a new one, one rung down the fallback ladder.
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
            yield from self._advised(request.preset)
            yield from self._made(_lowered(request), placement, size, state, stopped)
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
        """See LiveSource: yields one block of frames at a time.

        A machine that is too slow falls back to fewer steps, then to a smaller size, with a notice; the next
        session starts with that.
        Raises: AvatarError, Cancelled; RuntimeError when out of memory, as in frames().
        """
        whole, asked = as_request(request), request.preset
        whole = replace(whole, preset=settled_here(whole.preset))
        if asked in self._lighter:
            whole = replace(whole, preset=self._lighter[asked])
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
            arrival = Arrival(track.is_ready)
            return self._spoken(lighter, placement, size, state, [track], stopped, arrival)

        try:
            yield from request.notices
            if asked in self._lighter:
                yield starts_lighter(whole.preset)
            yield from live_frames(whole, track, make, lambda lighter: self._lighter.update({asked: lighter}))
        finally:
            self._state = None
            if not self._models.lasting:
                self._parts = None
            self._denoising.run_ends()

    def anchor(self) -> np.ndarray | None:
        """The current run's first latent frame, once generated, 16 1 h w float32."""
        return None if self._state is None else self._state.anchor

    def close(self) -> None:
        """See FrameSource."""
        self._parts = None

    def plan_for(self, request: Request) -> Plan:
        """Plan a run of this request. Called as the run begins; frames() then follows the plan."""
        preset = _lowered(request).preset
        planned = self._denoising.plan(
            preset,
            held=self._placement_held(preset),
            fixed=self._models.placement,
            speech_s=request.speech_frames / FPS,
            pose=request.pose is not None,
            share=CAUTION ** (request.part.num_full if request.part else 0),
            num_speakers=request.num_speakers,
        )
        self._planned = request, planned.placement
        return planned

    def pinned_bytes(self) -> int:
        """Bytes of host memory pinned by this process."""
        return pinned_bytes()

    def _made(
        self,
        request: Request,
        placement: Placement,
        stream: Size,
        state: ResumeState,
        cancelled: Callable[[], bool],
    ) -> Iterator[FrameItem]:
        """Generate the remaining frames with the request's preset, at the stream's size."""

        def waiting() -> bool:
            self._observer.waiting()
            return cancelled()

        tracks: Sequence[AnyTrack]
        with ExitStack() as open_files:
            if (
                request.spoken and not request.speakers
            ):  # the same frames, whether the voice has ended or goes on
                voice = VoiceTrack(open_files.enter_context(open_speech(request, waiting)))
                arrival, tracks = Arrival(voice.is_ready, voice.exists), [voice]
            else:
                arrival, tracks = AT_ONCE, speech_tracks(request, open_files)
            yield from self._spoken(request, placement, stream, state, tracks, cancelled, arrival)

    def _spoken(
        self,
        request: Request,
        placement: Placement,
        stream: Size,
        state: ResumeState,
        tracks: Sequence[AnyTrack],
        cancelled: Callable[[], bool],
        arrival: Arrival = AT_ONCE,
    ) -> Generator[FrameItem]:
        """The same for given speech, one track per speaker."""
        check = checking(cancelled)

        def loading() -> None:
            self._observer.loading()
            check()

        yield Progress(Phase.LOADING)
        size = size_within(stream, request.preset)
        parts = yield from self._loaded(request, placement, size, loading)
        yield Progress(Phase.ENCODING)
        check()
        portrait = framed(request.portrait, stream, size, request.work)
        masks = speaker_masks(request, stream, size)
        conditions = parts.conditions.encode(portrait, prompt_for(request), size, tracks, masks)
        conditions = with_motion(conditions, state, request.portrait, stream, size, parts.vae)
        conditions = with_pose(
            conditions,
            request.pose,
            size,
            parts.vae,
            infer_frames=request.preset.generation.infer_frames,
            first_block=state.next_block,
            num_blocks=state.blocks_left,
            check=check,
        )
        anchor = anchor_at(state, size, parts.vae)
        self._observer.encoded()
        log.info("the conditions are encoded")
        yield Progress(Phase.GENERATING, activity=self._compiling(parts, size))
        for frames in self._decoded(parts, request, size, conditions, state, anchor, cancelled, arrival):
            yield from self._announced()
            state.end_at(end_frame(request))
            pixels = downloaded(frames[: state.frames_left]).numpy()
            yield state.show(resized(pixels, stream))

    def _advised(self, preset: Preset) -> Iterator[Notice]:
        """A notice if another format of the weights would be faster on these cards."""
        if text := advice_here(preset):
            yield Notice("int8_is_faster", text)

    def _announced(self) -> Iterator[Notice]:
        """Notices of the fast paths that this device lacks, once per run."""
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
        arrival: Arrival,
    ) -> Iterator[Tensor]:
        """Frames of each block, T H W 3 on the device, decoded during denoising or all at the end."""
        decoder = self._decoder(parts)
        start = decoder.go_on if state.goes_on else decoder.prime

        def prime() -> None:
            with self._observer.priming():
                start(conditions.motion)
            log.info("the decoder has begun")

        latents = partial(self._latents, parts, request, size, conditions, state, anchor, cancelled, arrival)
        if request.preset.memory.enable_online_decode:
            blocks = latents(prime)
        else:
            blocks = iter([block.cpu() for block in latents(lambda: None)])
            self._denoising.release(parts)
            prime()
        check = checking(cancelled)
        for index, block in enumerate(blocks):
            check()
            with self._observer.decoding():
                frames = decoder.decode(block)
            if not index:
                log.info("the first block is decoded")
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
        arrival: Arrival,
        meanwhile: Callable[[], None],
    ) -> Iterator[Tensor]:
        """Latents of each block; the rings are freed with this iterator. meanwhile: see rollout."""
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
            arrival=arrival,
            observer=self._observer,
        )
        for block in latents:
            if state.anchor is None:
                log.info("the first block is denoised")
                state.anchor = anchor_of(block)
            yield block

    def _decoder(self, parts: Components) -> StreamingDecoder:
        if self._warm_up is not None:
            self._warm_up.wait()
        compile = self._compiles and parts.device.type == "cuda" and compiles(parts.device)
        return StreamingDecoder(parts.decoder, compile=compile)

    def _compiling(self, parts: Components, size: Size) -> Activity | None:
        """Whether the first block waits for code, which each size has of its own."""
        if not self._compiles or parts.device.type != "cuda" or size in self._compiled_sizes:
            return None
        self._compiled_sizes.add(size)
        return Activity.COMPILING

    def _loaded(
        self, request: Request, placement: Placement, size: Size, check: Check
    ) -> Generator[Progress, None, Components]:
        """All models, loaded unless they are already held in the way that this request needs."""
        preset = request.preset
        held = self._placement_held(preset)
        if held is None or not held.serves(placement):
            self._free()
            yield Progress(Phase.LOADING, activity=Activity.READING)
            parts = self._models.load(request, placement, check)
            log.info("the side models are loaded")
            self._warm_decoder(parts, preset, size)
            if parts.must_convert(preset.memory):
                yield Progress(Phase.LOADING, activity=Activity.CONVERTING)
            self._denoising.prepare(parts, check)
            log.info("the transformer is loaded")
            self._use(parts, preset)
        assert self._parts is not None
        self._parts.placement = placement
        self._denoising.prepare(self._parts, check)
        return self._parts

    def _warm_decoder(self, parts: Components, preset: Preset, size: Size) -> None:
        """Prepare its graph now, if the plan lets it decode beside a loaded transformer."""
        beside = preset.memory.enable_online_decode and not parts.placement.side_models_on_host
        if self._warm_up is not None and beside:
            self._warm_up.decode(parts.decoder, size)

    def _placement_held(self, preset: Preset) -> Placement | None:
        """The placement of the loaded models; None if they cannot be used for the preset."""
        return self._parts.placement if self._parts is not None and self._held == preset.models else None

    def _placement(self, request: Request) -> Placement:
        """The placement for this run: from the last plan_for if it was for this request, else a new plan."""
        planned, self._planned = self._planned, None
        if planned is not None and planned[0] == request:
            return planned[1]
        return self._models.placement or self.plan_for(request).placement

    def _use(self, parts: Components, preset: Preset) -> None:
        self._parts, self._held = parts, preset.models
        self._compiled_sizes.clear()
        self.pieces = CompiledPieces.on(parts.device) if self._compiles else EAGER

    def _free(self) -> None:
        """Free all of our memory on the device."""
        if self._parts is not None:
            self._parts.release_transformer()  # even if the parts are referenced elsewhere
        self._parts = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _lowered(request: Request) -> Request:
    """The request at its part's rung of the ladder, with the format of weights for these cards."""
    lower = lowered(request)
    return replace(lower, preset=settled_here(lower.preset))


def checking(cancelled: Callable[[], bool]) -> Check:
    """A Check that raises Cancelled when cancelled() returns True."""

    def check() -> None:
        if cancelled():
            raise Cancelled("The run was stopped.")

    return check
