"""The diffusion engine: conditions once, then block after block of frames; see engine.FrameSource."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from avatar.diffusion.conditions import SpeechTrack
from avatar.diffusion.decode import StreamingDecoder
from avatar.diffusion.denoise import Conditions, LocalDenoiser
from avatar.diffusion.layer_stack import Pieces
from avatar.diffusion.parts import Parts
from avatar.diffusion.rollout import rollout
from avatar.diffusion.schedule import Schedule
from avatar.engine import Frames
from avatar.errors import Cancelled
from avatar.events import Notice, Phase, Progress
from avatar.geometry import Geometry, Size, num_blocks, output_size
from avatar.media.speech import SpeechReader
from avatar.preset import Preset
from avatar.request import Request

log = logging.getLogger(__name__)


class DiffusionSource:
    """Live Avatar on one device; its models stay loaded between requests."""

    label = ""

    def __init__(self, preset: Preset, weights: Path | None = None) -> None:
        """preset: decides how the models are held. weights: the checkpoint folder, when it was named."""
        self._memory, self._weights = preset.memory, weights
        self._parts: Parts | None = None
        self.pieces = Pieces()
        if preset.requires.weights == "tiny":
            self.label = "self-test: noise"

    @classmethod
    def of(cls, parts: Parts, preset: Preset) -> DiffusionSource:
        """A source over parts that are made already."""
        source = cls(preset)
        source._use(parts)
        return source

    def frames(self, request: Request, cancelled: Callable[[], bool]) -> Iterator[Frames | Notice | Progress]:
        """Yield uint8 (T, H, W, 3) RGB, a block at a time. Raises: AvatarError, Cancelled."""
        yield Progress(Phase.LOADING)
        parts = self._loaded()
        yield Progress(Phase.ENCODING)
        if cancelled():
            raise Cancelled("The run was stopped.")
        with SpeechReader(request.speech) as speech:
            size = video_size(request)
            track = SpeechTrack(speech.listen, speech.num_samples_16k)
            conditions = parts.conditions.encode(request.portrait, request.prompt, size, [track])
            yield Progress(Phase.GENERATING)
            left = request.num_frames
            for frames in self._decoded(parts, request, size, conditions, cancelled):
                yield frames[:left].cpu().numpy()
                left -= len(frames)

    def _decoded(
        self,
        parts: Parts,
        request: Request,
        size: Size,
        conditions: Conditions,
        cancelled: Callable[[], bool],
    ) -> Iterator[Tensor]:
        """Frames of each block, T H W 3 on the device: as they come, or all at the end."""
        decoder = StreamingDecoder(parts.vae, compile=parts.device.type == "cuda")
        latents = self._latents(parts, request, size, conditions, cancelled)
        if not request.preset.memory.enable_online_decode:
            latents = iter([block.cpu() for block in latents])
            parts.release_transformer()
        decoder.prime(conditions.motion)
        for block in latents:
            if cancelled():
                raise Cancelled("The run was stopped.")
            yield decoder.decode(block)

    def _latents(
        self,
        parts: Parts,
        request: Request,
        size: Size,
        conditions: Conditions,
        cancelled: Callable[[], bool],
    ) -> Iterator[Tensor]:
        generation = request.preset.generation
        denoiser = LocalDenoiser(
            parts.load_transformer(),
            Geometry.of(size, generation.infer_frames),
            Schedule.flow_match(generation.sample_steps, generation.shift),
            pieces=self.pieces,
            ring_dtype=torch.float32 if request.preset.memory.ring_dtype == "fp32" else None,
        )
        yield from rollout(
            conditions,
            denoiser,
            num_blocks=num_blocks(request.num_frames),
            seed=request.seed,
            cancelled=cancelled,
        )

    def _loaded(self) -> Parts:
        if self._parts is None:
            self._use(Parts.load(self._memory, self._weights))
        assert self._parts is not None
        self._parts.load_transformer()
        return self._parts

    def _use(self, parts: Parts) -> None:
        self._parts = parts
        if parts.device.type == "cuda":
            self.pieces = Pieces.compiled()

    def close(self) -> None:
        """See FrameSource."""
        self._parts = None


def video_size(request: Request) -> Size:
    """The video's own size: the portrait's aspect within the preset's area."""
    with Image.open(request.portrait) as portrait:
        return output_size(portrait.width, portrait.height, request.preset.generation.size)
