"""Create the engine that a preset names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from avatar.errors import BadInput
from avatar.preset import Preset
from avatar.runtime.engine import Engine
from avatar.runtime.zero_gpu import ZeroGpu, ZeroGpuEngine


def open_engine(
    preset: Preset,
    *,
    weights: Path | None = None,
    gpus: Sequence[str] | None = None,
    attach: str | None = None,
    zero_gpu: ZeroGpu | None = None,
) -> Engine:
    """The engine that the preset names, in a subprocess; no model is loaded yet.

    attach: "host:port" of ranks that torchrun started, for a preset of the diffusion engine.
    zero_gpu: ZeroGPU's GPU, granted for one run at a time; the diffusion engine then has no subprocess.
    preset: resolved ("auto" replaced by the best that fits). weights: the checkpoint folder, if named.
    gpus: those visible to it, as CUDA_VISIBLE_DEVICES names them. Raises: BadInput for a preset that is not
    resolved.
    """
    from avatar.runtime.engine_process import EngineProcess

    if zero_gpu is not None and attach is None and preset.engine == "diffusion":
        return ZeroGpuEngine(
            zero_gpu, "avatar.pipeline.zero_gpu_pipeline:ZeroGpuPipeline", preset=preset, weights=weights
        )
    source, options = source_of(preset, weights)
    if attach is not None and preset.engine == "diffusion":
        options["attach"] = attach
    return EngineProcess(source, gpus, **options)


def source_of(preset: Preset, weights: Path | None) -> tuple[str, dict[str, Any]]:
    """A preset's FrameSource as "package.module:Class", and its constructor's options. Raises: BadInput."""
    if preset.engine == "preview":
        return "avatar.preview.source:PreviewSource", {}
    if preset.engine == "diffusion":
        return "avatar.runtime.ranked_source:RankedSource", {"preset": preset, "weights": weights}
    raise BadInput(f"Preset {preset.name!r} names no engine.", "Resolve it first, or pick another preset.")
