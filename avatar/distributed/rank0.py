"""Rank 0 of the diffusion engine: a FrameSource whose transformer the other ranks share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from avatar.distributed.coordinator import Coordinator, ParallelDenoiser
from avatar.distributed.fsdp_text import encode_together
from avatar.distributed.init import RankContext
from avatar.distributed.loading import load_share
from avatar.distributed.p2p import Encode, Go, Load, MessageChannel
from avatar.distributed.process_groups import Group, join, pieces_of
from avatar.events import Notice, Progress
from avatar.geometry import FPS, Geometry, Size
from avatar.model.text_encoder import TextWeights
from avatar.model.transformer import StreamingTransformer
from avatar.model.weights.checkpoint import CheckpointFiles
from avatar.model.weights.loading import Check
from avatar.pipeline.components import Components
from avatar.pipeline.denoise import Denoiser
from avatar.pipeline.device import DTYPES, ring_dtype
from avatar.pipeline.pipeline import DiffusionPipeline, MakeParts
from avatar.pipeline.schedule import Schedule
from avatar.planning.estimates import CUDA_CONTEXT_BYTES
from avatar.planning.inventory import own_processes, probe
from avatar.planning.placement import Placement
from avatar.planning.plan import Plan
from avatar.planning.planner import plan
from avatar.planning.transformer_config import ModelConfig
from avatar.preset import Preset
from avatar.request import LiveRequest, Request
from avatar.runtime.engine import FrameItem
from avatar.runtime.fallback import lowered
from avatar.runtime.live import LiveFrames


class SingleRankSource(DiffusionPipeline):
    """The only rank."""

    def __init__(self, preset: Preset, weights: Path | None, seat: RankContext) -> None:
        super().__init__(preset, weights)
        self._meter = seat.meter

    def frames(self, request: Request, cancelled: Callable[[], bool]) -> Iterator[FrameItem]:
        """See FrameSource."""

        def stopped() -> bool:
            self._meter.step()
            return cancelled()

        self._meter.pause()
        return super().frames(request, stopped)

    def live(
        self, request: LiveRequest, sound: Iterator[np.ndarray], cancelled: Callable[[], bool]
    ) -> Iterator[LiveFrames | Notice | Progress]:
        """See LiveSource. Waiting for sound is no step."""

        def stopped() -> bool:
            self._meter.tick()
            return cancelled()

        self._meter.pause()
        return super().live(request, sound, stopped)


class Rank0Source(DiffusionPipeline):
    """Rank 0 of several: conditions and decoding are its own; of the transformer it has a share at most.

    Memory that runs out on any rank ends them all, and fresh ones go on a rung lower: see RankedSource.
    """

    def __init__(
        self, preset: Preset, weights: Path | None, seat: RankContext, make_parts: MakeParts | None = None
    ) -> None:
        """make_parts: where the side models come from, if not from a checkpoint."""
        super().__init__(preset, weights, make_parts)
        self.preset, self._seat, self._post = preset, seat, MessageChannel()
        self._files: CheckpointFiles | None = None
        self._group: Group | None = None
        self._conductor: Coordinator | None = None
        self._denoiser: ParallelDenoiser | None = None
        if preset.memory.text_encoder == "sharded":
            self._encode_text = self._encode_together

    def frames(self, request: Request, cancelled: Callable[[], bool]) -> Iterator[FrameItem]:
        """See FrameSource. However it ends, the other ranks are free for the next run."""
        try:
            yield from super().frames(request, cancelled)
        finally:
            if self._denoiser is not None:
                self._denoiser.close()
                self._denoiser = None

    def live(
        self, request: LiveRequest, sound: Iterator[np.ndarray], cancelled: Callable[[], bool]
    ) -> Iterator[LiveFrames | Notice | Progress]:
        """See LiveSource. However it ends, the other ranks are free for the next run."""

        def stopped() -> bool:
            self._seat.meter.tick()
            return cancelled()

        try:
            yield from super().live(request, sound, stopped)
        finally:
            if self._denoiser is not None:
                self._denoiser.close()
                self._denoiser = None

    @property
    def plan_binds(self) -> bool:  # type: ignore[override]
        """See DiffusionPipeline. Loaded shares stay loaded: only a full GPU shows that they do not fit."""
        return self._conductor is None

    def plan_for(self, request: Request) -> Plan:
        """See DiffusionPipeline; of all GPUs of this machine, where the other ranks' memory is ours, too."""
        speech_s = request.speech_frames / FPS
        preset = lowered(request).preset
        inventory = probe(self._weights, our_pids=own_processes([os.getppid()]))
        gpus = tuple(  # in a container NVML may know our processes by other numbers
            replace(gpu, ours_bytes=max(gpu.ours_bytes, CUDA_CONTEXT_BYTES)) for gpu in inventory.gpus
        )
        return plan(preset, replace(inventory, gpus=gpus), speech_s=speech_s)

    def prepare(self, parts: Components, check: Check) -> None:
        """See DiffusionPipeline. All ranks load at once, each its share."""
        if self._conductor is not None:
            return
        if self._group is None:
            self._tell(Load())
            self._group = join(self.preset, self.config(), self._seat)
        share = self.share(self._group, parts.dtype, check)
        self._conductor = Coordinator(self._group, share, parts.dtype, pieces_of(self.preset, parts.device))
        self._tell(Go())

    def files(self, request: Request) -> CheckpointFiles:
        """See DiffusionPipeline."""
        self._files = super().files(request)
        return self._files

    def config(self) -> ModelConfig:
        """The model's."""
        assert self._files is not None
        return ModelConfig.load(self._files.config)

    def share(self, group: Group, dtype: torch.dtype, check: Check) -> StreamingTransformer | None:
        """Rank 0's own share of the transformer, None if it only decodes."""
        assert self._files is not None
        return load_share(self._files, self.preset.memory, group, dtype, check)

    def priming(self) -> AbstractContextManager[None]:
        """See DiffusionPipeline. What the first block waits for has the GPU first."""
        assert self._denoiser is not None
        self._denoiser.wait_until_begun()
        return self._seat.meter.working()

    def decoding(self) -> AbstractContextManager[None]:
        """See DiffusionPipeline. Decoding is work, too."""
        return self._seat.meter.working()

    def release(self, parts: Components) -> None:
        """The shares stay: it would take all ranks to load them again."""

    def make_denoiser(self, preset: Preset, parts: Components, size: Size) -> Denoiser:
        """See DiffusionPipeline."""
        assert self._conductor is not None
        generation = preset.generation
        self._denoiser = self._conductor.denoiser(
            Geometry.of(size, generation.infer_frames),
            Schedule.flow_match(generation.sample_steps, generation.shift),
            ring_dtype(preset.memory),
        )
        return self._denoiser

    def _encode_together(self, ids: Tensor) -> Tensor:
        """See EncodeText. A wrong checkpoint is found before the other ranks are told, which would wait."""
        assert self._files is not None
        weights = TextWeights.open(self._files.text_encoder)
        self._tell(Encode(ids))
        return encode_together(weights, ids, DTYPES[self.preset.memory.weight_dtype], self._seat)

    def _tell(self, order: Load | Go | Encode) -> None:
        for rank in range(1, self._seat.world_size):
            self._post.send(order, rank)

    def _from_checkpoint(self, request: Request, placement: Placement, check: Check) -> Components:
        def ticking() -> None:
            self._seat.meter.tick()
            check()

        return super()._from_checkpoint(request, placement, ticking)
