"""The diffusion engine: conditions once, then block after block of frames; see engine.FrameSource."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from avatar.diffusion.baton import Baton
from avatar.diffusion.conditions import SpeechTrack
from avatar.diffusion.decode import StreamingDecoder
from avatar.diffusion.denoise import Conditions, Denoiser, LocalDenoiser
from avatar.diffusion.layer_stack import Pieces
from avatar.diffusion.parts import DTYPES, Check, Parts
from avatar.diffusion.rollout import rollout
from avatar.diffusion.schedule import Schedule
from avatar.engine import SELF_TEST_LABEL, Frames
from avatar.errors import BadInput, Cancelled, DoesNotFit
from avatar.events import Notice, Phase, Progress
from avatar.geometry import Geometry, Size, output_size
from avatar.media.speech import SpeechReader
from avatar.memory.plan import gib
from avatar.memory.planner import TINY_BYTES
from avatar.models.checkpoint import CheckpointFiles, open_checkpoint
from avatar.models.text_encoder import PromptTokenizer
from avatar.models.tiny import build_tiny_checkpoint
from avatar.preset import Memory, Preset
from avatar.request import Request

log = logging.getLogger(__name__)

TINY_FOLDER = "self-test"  # in the run's own folder


class DiffusionSource:
    """Live Avatar on one device; its models stay loaded between requests.

    The self-test's preset takes a toy checkpoint: the named one, or one built for each run in its own folder.
    """

    def __init__(self, preset: Preset, weights: Path | None = None) -> None:
        """preset: it tells whether this is the self-test. weights: the checkpoint folder, when named."""
        is_tiny = preset.requires.weights == "tiny"
        self._weights = weights
        self._keeps = not is_tiny or weights is not None  # else its files go with each run's folder
        self._parts: Parts | None = None
        self._held: tuple[str, str] | None = None  # the settings that the parts were loaded with
        self.pieces = Pieces()
        self.label = SELF_TEST_LABEL if is_tiny else ""

    @classmethod
    def of(cls, parts: Parts, preset: Preset) -> DiffusionSource:
        """A source over parts that are made already, as the preset holds them."""
        source = cls(preset)
        source._use(parts, preset.memory)
        source._keeps = True
        return source

    def frames(self, request: Request, cancelled: Callable[[], bool]) -> Iterator[Frames | Notice | Progress]:
        """Yield uint8 (T, H, W, 3) RGB, a block at a time. Raises: AvatarError, Cancelled."""
        check = checking(cancelled)
        try:
            yield Progress(Phase.LOADING)
            parts = self._loaded(request, check)
            yield Progress(Phase.ENCODING)
            check()
            with SpeechReader(request.speech) as speech:
                size = video_size(request)
                track = SpeechTrack(speech.listen, speech.num_samples_16k)
                conditions = parts.conditions.encode(request.portrait, request.prompt, size, [track])
                baton = Baton.take(request, size)
                conditions = baton.conditions(conditions, parts.vae)
                yield Progress(Phase.GENERATING)
                for frames in self._decoded(parts, request, size, conditions, baton, cancelled):
                    yield baton.pass_frames(frames[: baton.frames_left].cpu().numpy())
                baton.leave(request)
        except torch.OutOfMemoryError as error:
            self._parts = None
            raise DoesNotFit(
                "The GPU ran out of memory.",
                "Close other programs that use it, or take a smaller size, fewer infer_frames or steps.",
            ) from error
        finally:
            if not self._keeps:
                self._parts = None

    def close(self) -> None:
        """See FrameSource."""
        self._parts = None

    def _decoded(
        self,
        parts: Parts,
        request: Request,
        size: Size,
        conditions: Conditions,
        baton: Baton,
        cancelled: Callable[[], bool],
    ) -> Iterator[Tensor]:
        """Frames of each block, T H W 3 on the device: as they come, or all at the end."""
        decoder = StreamingDecoder(parts.vae, compile=parts.device.type == "cuda")
        latents = self._latents(parts, request, size, conditions, baton, cancelled)
        if not request.preset.memory.enable_online_decode:
            latents = iter([block.cpu() for block in latents])
            self.release(parts)
        check = checking(cancelled)
        if baton.goes_on:
            decoder.go_on(conditions.motion)
        else:
            decoder.prime(conditions.motion)
        for block in latents:
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
        cancelled: Callable[[], bool],
    ) -> Iterator[Tensor]:
        """Latents of each block; the rings live as long as this iterator."""
        latents = rollout(
            conditions,
            self.denoiser(request, parts, size),
            num_blocks=baton.first_block + baton.num_blocks,
            seed=request.seed,
            cancelled=cancelled,
            first_block=baton.first_block,
            anchor=baton.anchor,
            origin=baton.first_block,
        )
        for block in latents:
            baton.pass_latents(block)
            yield block

    def _loaded(self, request: Request, check: Check) -> Parts:
        """All models, loaded unless held as this request wants them; the prompt is measured first."""
        memory = request.preset.memory
        if self._parts is None or self._held != held_as(memory):
            self._parts = None
            files = find_files(request.preset, self._weights, request.work)
            PromptTokenizer(files.tokenizer)(request.prompt)
            self._use(self.load(memory, files, check), memory)
        assert self._parts is not None
        self.prepare(self._parts, check)
        return self._parts

    def load(self, memory: Memory, files: CheckpointFiles, check: Check) -> Parts:
        """The models of this device, but for the transformer."""
        return Parts.load(memory, files, check)

    def prepare(self, parts: Parts, check: Check) -> None:
        """Have the transformer loaded; called before every run."""
        parts.load_transformer(check)

    def decoding(self) -> AbstractContextManager[None]:
        """Entered around the decoding of every block."""
        return nullcontext()

    def release(self, parts: Parts) -> None:
        """The transformer is not needed until the next run."""
        parts.release_transformer()

    def denoiser(self, request: Request, parts: Parts, size: Size) -> Denoiser:
        """What denoises a run's blocks, with empty rings."""
        return local_denoiser(request.preset, parts, size, self.pieces)

    def _use(self, parts: Parts, memory: Memory) -> None:
        self._parts, self._held = parts, held_as(memory)
        self.pieces = pieces_for(parts.device)


def find_files(preset: Preset, weights: Path | None, work: Path) -> CheckpointFiles:
    """The checkpoint that a preset takes; the self-test's is a toy one, built in work when none is named.

    Raises: WeightsMissing, BadInput for a named checkpoint that is too large for the self-test.
    """
    if preset.requires.weights != "tiny":
        return open_checkpoint(weights)
    files = open_checkpoint(weights or build_tiny_checkpoint(work / TINY_FOLDER))
    num_bytes = sum(shard.stat().st_size for shard in files.shards)
    if num_bytes > TINY_BYTES:
        raise BadInput(
            f"The self-test runs a toy model; these weights take {gib(num_bytes)}.",
            "Leave out --ckpt_dir, or choose another preset.",
        )
    return files


def local_denoiser(
    preset: Preset, parts: Parts, size: Size, pieces: Pieces, kind: type[LocalDenoiser] = LocalDenoiser
) -> LocalDenoiser:
    """The denoiser that a preset asks for, with empty rings."""
    generation = preset.generation
    return kind(
        parts.load_transformer(),
        Geometry.of(size, generation.infer_frames),
        Schedule.flow_match(generation.sample_steps, generation.shift),
        pieces=pieces,
        ring_dtype=DTYPES[preset.memory.ring_dtype],
    )


def pieces_for(device: torch.device) -> Pieces:
    """Compiled where it pays."""
    return Pieces.compiled() if device.type == "cuda" else Pieces()


def checking(cancelled: Callable[[], bool]) -> Check:
    """What raises Cancelled when cancelled() says yes."""

    def check() -> None:
        if cancelled():
            raise Cancelled("The run was stopped.")

    return check


def held_as(memory: Memory) -> tuple[str, str]:
    """The settings that decide how models are loaded; the others may change from run to run."""
    return memory.weight_dtype, memory.text_encoder


def video_size(request: Request) -> Size:
    """The video's own size: the portrait's aspect within the preset's area."""
    with Image.open(request.portrait) as portrait:
        return output_size(portrait.width, portrait.height, request.preset.generation.size)
