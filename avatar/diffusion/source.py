"""The diffusion engine: conditions once, then block after block of frames; see engine.FrameSource."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from avatar.diffusion.baton import Baton
from avatar.diffusion.conditions import EncodeText, SpeechTrack
from avatar.diffusion.decode import StreamingDecoder
from avatar.diffusion.denoise import Conditions, Denoiser, LocalDenoiser
from avatar.diffusion.device import best_device, downloaded, ring_dtype
from avatar.diffusion.fallback import Descent, is_out_of_memory
from avatar.diffusion.files import find_files
from avatar.diffusion.framing import framed, resized, size_within, video_size
from avatar.diffusion.layer_stack import Pieces
from avatar.diffusion.parts import Parts
from avatar.diffusion.rollout import rollout
from avatar.diffusion.room import place_of, placement_on, plan_here
from avatar.diffusion.schedule import Schedule
from avatar.engine import SELF_TEST_LABEL, Frames
from avatar.errors import Cancelled
from avatar.events import Notice, Phase, Progress
from avatar.geometry import Geometry, Size
from avatar.media.speech import SpeechReader
from avatar.memory.pinned import pinned_bytes
from avatar.memory.placement import Placement
from avatar.memory.plan import Plan
from avatar.models.checkpoint import CheckpointFiles
from avatar.models.text_encoder import PromptTokenizer
from avatar.models.weights import Check
from avatar.preset import Memory, Preset
from avatar.request import Request

log = logging.getLogger(__name__)

CAUTION = 0.9  # of what was counted on before, each time that memory ran out all the same


MakeParts = Callable[[Request, Placement, Check], Parts]


class DiffusionSource:
    """Live Avatar on one device; its models stay loaded between requests.

    The self-test's preset takes a toy checkpoint: the named one, or one built for each run in its own folder.
    Where the GPU's memory runs out, it steps down the ladder and goes on from the last block shown.
    """

    steps_down = True  # itself; else whoever made it does, and goes on with another

    def __init__(
        self, preset: Preset, weights: Path | None = None, make_parts: MakeParts | None = None
    ) -> None:
        """preset: it tells whether this is the self-test. weights: the checkpoint folder, when named.

        make_parts: where the models come from, if not from a checkpoint.
        """
        is_tiny = preset.requires.weights == "tiny"
        self._weights = weights
        self._keeps = not is_tiny or weights is not None  # else its files go with each run's folder
        self._make_parts = make_parts or self._from_checkpoint
        self._encode_text: EncodeText | None = None  # how several ranks do it together
        self._parts: Parts | None = None
        self._held: tuple[str, str] | None = None  # the settings that the parts were loaded with
        self._share = 1.0  # of the device's room that a plan may count on
        self._fixed: Placement | None = None  # what the parts' own placement leaves no choice in
        self._baton: Baton | None = None  # of the run that goes on
        self._stands_on: tuple[str, int] | None = None  # a long video's run, and the rungs that it has taken
        self.pieces = Pieces()
        self.label = SELF_TEST_LABEL if is_tiny else ""

    @classmethod
    def of(cls, parts: Parts, preset: Preset, make_parts: MakeParts | None = None) -> DiffusionSource:
        """A source over parts that are made already, as the preset holds them.

        make_parts: makes them anew when memory ran out; None: the same ones, their transformer made anew.
        """
        source = cls(preset, make_parts=make_parts or (lambda *_: parts))
        source._use(parts, preset.memory)
        source._keeps = True
        source._fixed = parts.placement if make_parts is None else None
        return source

    def frames(self, request: Request, cancelled: Callable[[], bool]) -> Iterator[Frames | Notice | Progress]:
        """Yield uint8 (T, H, W, 3) RGB, a block at a time. Raises: AvatarError, Cancelled."""
        size = video_size(request)
        baton, descent = Baton.take(request, size), self._descent(request)
        self._baton = baton
        try:
            yield from self._stepped_down(descent)
            while True:
                try:
                    yield from self._made(descent.request, size, baton, cancelled)
                    break
                except RuntimeError as error:
                    if not (self.steps_down and is_out_of_memory(error)):
                        raise
                    log.warning("out of memory: %s", str(error).strip().split("\n")[0])
                # The error is gone, and with it what its frames of the stack still held.
                self._free()
                self._share *= CAUTION
                yield descent.step_down(baton.next_block, self._device_name)
                baton.go_on()
                if request.part is not None:
                    self._stands_on = request.part.run, descent.num_taken
            baton.leave(request)
        finally:
            self._baton = None
            if not self._keeps:
                self._parts = None

    def anchor(self) -> np.ndarray | None:
        """The first latent frame of the run that goes on, once generated, 16 1 h w float32."""
        anchor = None if self._baton is None else self._baton.anchor
        return None if anchor is None else anchor.numpy()

    def close(self) -> None:
        """See FrameSource."""
        self._parts = None

    def plan_for(self, request: Request) -> Plan:
        """The plan that a run of this request would follow."""
        preset = request.preset
        speech_s = request.speech_frames / preset.generation.fps
        _, placement = self._placements(preset)
        return plan_here(preset, best_device(), self._weights, placement, speech_s)

    def pinned_bytes(self) -> int:
        """Host memory that is pinned for this process's GPUs."""
        return pinned_bytes()

    def _made(
        self, request: Request, stream: Size, baton: Baton, cancelled: Callable[[], bool]
    ) -> Iterator[Frames | Progress]:
        """What is left to make, as the request's preset makes it, in frames of the stream's size."""
        check = checking(cancelled)
        yield Progress(Phase.LOADING)
        parts = self._loaded(request, check)
        yield Progress(Phase.ENCODING)
        check()
        size = size_within(stream, request.preset)
        portrait = framed(request.portrait, stream, size, request.work)
        with SpeechReader(request.speech) as speech:
            track = SpeechTrack(speech.listen, speech.num_samples_16k)
            conditions = parts.conditions.encode(portrait, request.prompt, size, [track])
            conditions = baton.conditions(conditions, size, parts.vae)
            anchor = baton.anchor_for(size, parts.vae)
            yield Progress(Phase.GENERATING)
            for frames in self._decoded(parts, request, size, conditions, baton, anchor, cancelled):
                pixels = downloaded(frames[: baton.frames_left]).numpy()
                yield baton.pass_frames(resized(pixels, stream))

    def _decoded(
        self,
        parts: Parts,
        request: Request,
        size: Size,
        conditions: Conditions,
        baton: Baton,
        anchor: Tensor | None,
        cancelled: Callable[[], bool],
    ) -> Iterator[Tensor]:
        """Frames of each block, T H W 3 on the device: as they come, or all at the end."""
        decoder = self.make_decoder(parts)
        start = decoder.go_on if baton.goes_on else decoder.prime

        def prime() -> None:
            with self.priming():
                start(conditions.motion)

        latents = partial(self._latents, parts, request, size, conditions, baton, anchor, cancelled)
        if request.preset.memory.enable_online_decode:
            blocks = latents(prime)
        else:
            blocks = iter([block.cpu() for block in latents(lambda: None)])
            self.release(parts)
            prime()
        check = checking(cancelled)
        for block in blocks:
            check()
            with self.decoding():
                frames = decoder.decode(block)
            yield frames

    def _latents(
        self,
        parts: Parts,
        request: Request,
        size: Size,
        conditions: Conditions,
        baton: Baton,
        anchor: Tensor | None,
        cancelled: Callable[[], bool],
        meanwhile: Callable[[], None],
    ) -> Iterator[Tensor]:
        """Latents of each block; the rings live as long as this iterator. meanwhile: see rollout."""
        latents = rollout(
            conditions,
            self.make_denoiser(request.preset, parts, size),
            num_blocks=baton.first_block + baton.num_blocks,
            seed=request.seed,
            cancelled=cancelled,
            first_block=baton.first_block,
            anchor=anchor,
            origin=baton.first_block,
            meanwhile=meanwhile,
        )
        for block in latents:
            baton.pass_latents(block)
            yield block

    def make_denoiser(self, preset: Preset, parts: Parts, size: Size) -> Denoiser:
        """The denoiser of a run, with empty rings; a bench times its own, several ranks share theirs."""
        return local_denoiser(preset, parts, size, self.pieces)

    def make_decoder(self, parts: Parts) -> StreamingDecoder:
        """The decoder of a run; likewise."""
        return StreamingDecoder(parts.vae, compile=parts.device.type == "cuda")

    def _loaded(self, request: Request, check: Check) -> Parts:
        """All models, loaded unless held as this request wants them."""
        preset = request.preset
        held, placement = self._placements(preset)
        if held is None or not held.serves(placement):
            self._free()
            parts = self._make_parts(request, placement, check)
            self.prepare(parts, check)
            self._use(parts, preset.memory)
        assert self._parts is not None
        self._parts.placement = placement
        self.prepare(self._parts, check)
        return self._parts

    def prepare(self, parts: Parts, check: Check) -> None:
        """Have the transformer loaded; called before every run."""
        parts.load_transformer(check)

    def release(self, parts: Parts) -> None:
        """The transformer is not needed until the next run."""
        parts.release_transformer()

    def priming(self) -> AbstractContextManager[None]:
        """Entered around the decoder's priming."""
        return nullcontext()

    def decoding(self) -> AbstractContextManager[None]:
        """Entered around the decoding of every block."""
        return nullcontext()

    def files(self, request: Request) -> CheckpointFiles:
        """The checkpoint that a request takes. Raises: WeightsMissing, BadInput."""
        return find_files(request.preset, self._weights, request.work)

    def _placements(self, preset: Preset) -> tuple[Placement | None, Placement]:
        """How the parts are held, None where they would not do for the preset; and how it wants them."""
        parts = self._parts if self._held == held_as(preset.memory) else None
        held = None if parts is None else parts.placement
        if self._fixed is not None:
            return held, self._fixed
        return held, placement_on(best_device(), preset, held, self._weights, self._share)

    def _from_checkpoint(self, request: Request, placement: Placement, check: Check) -> Parts:
        """The models of the checkpoint; the prompt is measured first."""
        files = self.files(request)
        PromptTokenizer(files.tokenizer)(request.prompt)
        return Parts.load(request.preset.memory, files, check, placement, self._encode_text)

    def _use(self, parts: Parts, memory: Memory) -> None:
        self._parts, self._held = parts, held_as(memory)
        self.pieces = Pieces.on(parts.device)

    def _descent(self, request: Request) -> Descent:
        """The request's ladder; a long video's next part begins on the rung on which the last one ended."""
        descent = Descent(request)
        part, stood = request.part, self._stands_on
        if part is None or stood is None or part.run != stood[0]:
            self._stands_on, self._share = None, 1.0
        num_taken = 0 if self._stands_on is None else self._stands_on[1]
        descent.skip(max(num_taken, 0 if part is None else part.num_rungs))
        return descent

    def _stepped_down(self, descent: Descent) -> Iterator[Notice]:
        """Rungs that are taken before loading: the GPU may have less free than when the run was accepted.

        Raises: DoesNotFit when none is left.
        """
        while self._fixed is None:
            planned = self.plan_for(descent.request)
            present = [gpu for gpu in planned.gpus if gpu.total_bytes]
            if not any(gpu.shortfall_bytes for gpu in present):
                return
            yield descent.step_down_planned(planned)

    def _free(self) -> None:
        """Give back everything that the device holds for us."""
        if self._parts is not None:
            self._parts.release_transformer()  # whoever else holds these parts
        self._parts = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @property
    def _device_name(self) -> str:
        return place_of(best_device()) if torch.cuda.is_available() else ""


def local_denoiser(
    preset: Preset, parts: Parts, size: Size, pieces: Pieces, kind: type[LocalDenoiser] = LocalDenoiser
) -> LocalDenoiser:
    """The denoiser that a preset asks for, with empty rings, where the parts' placement puts them."""
    generation, transformer = preset.generation, parts.load_transformer()
    return kind(
        transformer,
        Geometry.of(size, generation.infer_frames),
        Schedule.flow_match(generation.sample_steps, generation.shift),
        pieces=pieces,
        ring_dtype=ring_dtype(preset.memory),
        host_layers=parts.host_layers,
        rings_on_host=parts.placement.rings_on_host,
        ring_memory=parts.ring_memory,
        diagonal=parts.placement.diagonal,
    )


def checking(cancelled: Callable[[], bool]) -> Check:
    """What raises Cancelled when cancelled() says yes."""

    def check() -> None:
        if cancelled():
            raise Cancelled("The run was stopped.")

    return check


def held_as(memory: Memory) -> tuple[str, str]:
    """The settings that decide how models are loaded; the others may change from run to run."""
    return memory.weight_dtype, memory.text_encoder
