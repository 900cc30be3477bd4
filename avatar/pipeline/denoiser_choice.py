"""Where a pipeline denoises: the Denoising protocol, and the implementation for this process's device."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from avatar.geometry import Geometry, Size
from avatar.model.weights.loading import Check
from avatar.pipeline.components import Components
from avatar.pipeline.denoiser import Denoiser, LocalDenoiser
from avatar.pipeline.device import best_device, ring_dtype
from avatar.pipeline.device_budget import plan_here
from avatar.pipeline.flow_match_euler import Schedule
from avatar.pipeline.layer_stack import CompiledPieces
from avatar.pipeline.observer import UNOBSERVED, Observer
from avatar.planning.placement import Placement
from avatar.planning.plan import Plan
from avatar.preset import Preset


class Denoising(Protocol):
    """Provides the denoiser for each of a pipeline's runs, and plans the memory that a run needs."""

    @property
    def plan_binds(self) -> bool:
        """Whether a run whose plan does not fit must fall back to a smaller setting before it begins."""
        ...

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
        """Plan a run's memory by device, and its offloading to the host; see plan_here.

        pose: whether a pose video leads it.
        """
        ...

    def prepare(self, parts: Components, check: Check) -> None:
        """Load the transformer if necessary; called before every run. Raises: whatever loading raises."""
        ...

    def denoiser(
        self, preset: Preset, parts: Components, size: Size, pieces: CompiledPieces, observer: Observer
    ) -> Denoiser:
        """The denoiser for a run, with empty rings."""
        ...

    def release(self, parts: Components) -> None:
        """May free the transformer, which is not needed until the next run."""
        ...

    def run_ends(self) -> None:
        """Called at the end of a run, however it ended."""
        ...


class LocalDenoising:
    """Denoising with the whole transformer on this process's device."""

    plan_binds = True

    def __init__(self, weights: Path | None = None) -> None:
        """weights: the checkpoint's folder, if given by the user."""
        self._weights = weights

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
        """See Denoising."""
        device, weights = best_device(), self._weights
        return plan_here(
            preset,
            device,
            weights=weights,
            held=held,
            fixed=fixed,
            speech_s=speech_s,
            share=share,
            num_speakers=num_speakers,
            pose=pose,
        )

    def prepare(self, parts: Components, check: Check) -> None:
        """See Denoising."""
        parts.load_transformer(check)

    def denoiser(
        self, preset: Preset, parts: Components, size: Size, pieces: CompiledPieces, observer: Observer
    ) -> Denoiser:
        """See Denoising."""
        return local_denoiser(preset, parts, size, pieces, observer)

    def release(self, parts: Components) -> None:
        """See Denoising."""
        parts.release_transformer()

    def run_ends(self) -> None:
        """See Denoising."""


def local_denoiser(
    preset: Preset,
    parts: Components,
    size: Size,
    pieces: CompiledPieces,
    observer: Observer = UNOBSERVED,
) -> LocalDenoiser:
    """The denoiser for a preset, with empty rings, placed according to the parts' placement."""
    generation, transformer = preset.generation, parts.load_transformer()
    return LocalDenoiser(
        transformer,
        Geometry.of(size, generation.infer_frames),
        Schedule.flow_match(generation.sample_steps, generation.shift),
        pieces=pieces,
        ring_dtype=ring_dtype(preset.memory),
        host_layers=parts.host_layers,
        rings_on_host=parts.placement.rings_on_host,
        ring_memory=parts.ring_memory,
        diagonal=parts.placement.diagonal,
        observer=observer,
    )
