"""Rank 0 of the diffusion engine: a pipeline whose transformer is spread over all ranks."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from avatar.checkpoints.transformer_config import ModelConfig
from avatar.distributed.coordinator import Coordinator, ParallelDenoiser
from avatar.distributed.fsdp_text import encode_together
from avatar.distributed.loading import load_share
from avatar.distributed.p2p import Encode, LoadShare, MessageChannel, StartWork
from avatar.distributed.process_groups import Group, join, pieces_of
from avatar.distributed.rank_meter import RankMeter
from avatar.distributed.rendezvous import RankContext
from avatar.geometry import Geometry, Size
from avatar.hardware.inventory import own_processes, probe
from avatar.model.text_encoder import TextWeights
from avatar.model.transformer import StreamingTransformer
from avatar.model.weights.checkpoint import CheckpointFiles
from avatar.model.weights.loading import Check
from avatar.pipeline.components import Components
from avatar.pipeline.conditioning import EncodeText
from avatar.pipeline.denoiser import Denoiser
from avatar.pipeline.device import DTYPES, ring_dtype
from avatar.pipeline.flow_match_euler import Schedule
from avatar.pipeline.layer_stack import CompiledPieces
from avatar.pipeline.model_loading import CheckpointModels
from avatar.pipeline.observer import Observer
from avatar.pipeline.pipeline import DiffusionPipeline
from avatar.planning.estimates import CUDA_CONTEXT_BYTES
from avatar.planning.placement import Placement
from avatar.planning.plan import Plan
from avatar.planning.planner import plan
from avatar.preset import Preset
from avatar.settings import Memory


class StepMeter(Observer):
    """Measures the denoising steps when there is only one rank."""

    def __init__(self, meter: RankMeter) -> None:
        self._meter = meter

    def run_begins(self) -> None:
        """See Observer. Time spent waiting for the next run is not a step."""
        self._meter.pause()

    def checked(self) -> None:
        """See Observer."""
        self._meter.step()

    def waiting(self) -> None:
        """See Observer. Waiting for sound is not a step, and not a sign of a hung rank."""
        self._meter.pause()
        self._meter.tick()


class Rank0Meter(Observer):
    """Measures rank 0's work outside its stage, which measures its own."""

    def __init__(self, meter: RankMeter) -> None:
        self._meter = meter

    def loading(self) -> None:
        """See Observer."""
        self._meter.tick()

    def waiting(self) -> None:
        """See Observer."""
        self._meter.tick()

    def priming(self) -> AbstractContextManager[object]:
        """See Observer."""
        return self._meter.working()

    def decoding(self) -> AbstractContextManager[object]:
        """See Observer."""
        return self._meter.working()


class Shares(Protocol):
    """The source of rank 0's own share of the transformer."""

    def config(self) -> ModelConfig:
        """The model's config; called once the side models are loaded."""
        ...

    def load(self, group: Group, dtype: torch.dtype, check: Check) -> StreamingTransformer | None:
        """The share, or None if rank 0 only decodes. Raises: WeightsMissing, whatever check raises."""
        ...


@dataclass(frozen=True)
class CheckpointShares:
    """Shares loaded from the same checkpoint as the side models."""

    models: CheckpointModels
    memory: Memory

    def config(self) -> ModelConfig:
        """See Shares."""
        return ModelConfig.load(self._files.config)

    def load(self, group: Group, dtype: torch.dtype, check: Check) -> StreamingTransformer | None:
        """See Shares."""
        return load_share(self._files, self.memory, group, dtype, check)

    @property
    def _files(self) -> CheckpointFiles:
        assert self.models.files is not None
        return self.models.files


class RankDenoising:
    """Denoising over several ranks, of which rank 0 has at most a share of the transformer.

    If any rank runs out of memory, all are ended, and new ones continue one rung down the fallback ladder
    (see RankedSource).
    """

    def __init__(self, preset: Preset, weights: Path | None, context: RankContext, shares: Shares) -> None:
        """weights: the checkpoint's folder, if given by the user."""
        self._preset, self._weights, self._context, self._shares = preset, weights, context, shares
        self._post = MessageChannel()
        self._group: Group | None = None
        self._conductor: Coordinator | None = None
        self._denoiser: ParallelDenoiser | None = None

    @property
    def plan_binds(self) -> bool:
        """See Denoising. False once shares are loaded: from then on only out of memory shows a misfit."""
        return self._conductor is None

    def plan(
        self,
        preset: Preset,
        *,
        held: Placement | None,
        fixed: Placement | None,
        speech_s: float,
        share: float,
        num_speakers: int = 1,
        pose: bool = False,
    ) -> Plan:
        """See Denoising. Covers all GPUs of this machine, counting the other ranks' memory as ours.

        With several ranks nothing is offloaded, so held, fixed and share are ignored.
        """
        inventory = probe(self._weights, our_pids=own_processes([os.getppid()]))
        gpus = tuple(  # in a container, NVML may report our processes under other PIDs
            replace(gpu, ours_bytes=max(gpu.ours_bytes, CUDA_CONTEXT_BYTES)) for gpu in inventory.gpus
        )
        now = replace(inventory, gpus=gpus)
        return plan(preset, now, speech_s=speech_s, num_speakers=num_speakers, pose=pose)

    def prepare(self, parts: Components, check: Check) -> None:
        """See Denoising. All ranks load their shares at the same time."""
        if self._conductor is not None:
            return
        if self._group is None:
            send_to_others(self._post, self._context, LoadShare())
            self._group = join(self._preset, self._shares.config(), self._context)
        share = self._shares.load(self._group, parts.dtype, check)
        self._conductor = Coordinator(self._group, share, parts.dtype, pieces_of(self._preset, parts.device))
        send_to_others(self._post, self._context, StartWork())

    def denoiser(
        self, preset: Preset, parts: Components, size: Size, pieces: CompiledPieces, observer: Observer
    ) -> Denoiser:
        """See Denoising. Ends the one before, which a live session leaves for one of fewer steps."""
        assert self._conductor is not None
        self.run_ends()
        generation = preset.generation
        self._denoiser = self._conductor.denoiser(
            Geometry.of(size, generation.infer_frames),
            Schedule.flow_match(generation.sample_steps, generation.shift),
            ring_dtype(preset.memory),
        )
        return self._denoiser

    def release(self, parts: Components) -> None:
        """See Denoising. Keeps the shares, since reloading them would involve all ranks."""

    def run_ends(self) -> None:
        """See Denoising. Frees the other ranks for the next run."""
        if self._denoiser is not None:
            self._denoiser.close()
            self._denoiser = None


def send_to_others(post: MessageChannel, context: RankContext, order: LoadShare | StartWork | Encode) -> None:
    """Send an order to all other ranks."""
    for rank in range(1, context.world_size):
        post.send(order, rank)


def text_encoder_over(context: RankContext, dtype: torch.dtype) -> Callable[[CheckpointFiles], EncodeText]:
    """A factory for rank 0's EncodeText, which encodes a prompt together with all other ranks."""
    post = MessageChannel()

    def of(files: CheckpointFiles) -> EncodeText:
        def encode(ids: Tensor) -> Tensor:
            weights = TextWeights.open(files.text_encoder)  # fails on a bad file before the others wait
            send_to_others(post, context, Encode(ids))
            return encode_together(weights, ids, dtype, context)

        return encode

    return of


def checkpoint_pipeline(
    preset: Preset, weights: Path | None, context: RankContext, observer: Observer | None = None
) -> DiffusionPipeline:
    """Rank 0's pipeline over a checkpoint, for any number of ranks."""
    if context.world_size == 1:
        return DiffusionPipeline(preset, weights, observer=observer or StepMeter(context.meter))
    sharded = preset.memory.text_encoder == "sharded"
    encoder = text_encoder_over(context, DTYPES[preset.memory.weight_dtype]) if sharded else None
    models = CheckpointModels(preset, weights, encoder)
    denoising = RankDenoising(preset, weights, context, CheckpointShares(models, preset.memory))
    observer = observer or Rank0Meter(context.meter)
    return DiffusionPipeline(preset, weights, models=models, denoising=denoising, observer=observer)
