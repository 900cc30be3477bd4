"""Accuracy of 8-bit attention: error of velocities with full rings, and drift of latents by block.

`python -m benchmarks.attention8` writes JSON; weights are random, at the real model's widths.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import torch
from torch import Tensor

from avatar.bench.measure import machine
from avatar.checkpoints.transformer_config import ModelConfig
from avatar.geometry import BLOCK_FRAMES, MOTION_LATENT_FRAMES, Geometry, Size
from avatar.model.audio_injection import NUM_HIDDEN_STATES
from avatar.model.linear_8bit import Quantiser
from avatar.model.transformer import StreamingTransformer
from avatar.model.weights.random_weights import random_transformer
from avatar.pipeline.denoiser import Conditions, HeldAudio, LocalDenoiser
from avatar.pipeline.device import best_device
from avatar.pipeline.layer_stack import CompiledPieces
from avatar.pipeline.rollout import rollout
from benchmarks.float8 import RecordedSchedule, errors

NUM_STEPS = 4
PROMPT_TOKENS = 15
ERROR_BLOCKS = 6  # the last two have full rings, of 48 frames


class Trial:
    """Runs of one model config on the same noise and conditions."""

    def __init__(self, config: ModelConfig, geometry: Geometry, device: torch.device) -> None:
        self.config, self.geometry, self.device = config, geometry, device

    def run(
        self,
        num_blocks: int,
        *,
        fp8: bool = False,
        attention: torch.dtype | None = None,
        dtype: torch.dtype = torch.bfloat16,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Velocities of every block and step, and latents of every block, on the CPU.

        fp8: quantise the weights. attention: int8, or None for the residual stream's dtype.
        """
        denoiser, schedule = self._denoiser(self._model(fp8, dtype), attention)
        latents = [
            block.cpu()
            for block in rollout(self._conditions(num_blocks), denoiser, num_blocks=num_blocks, seed=0)
        ]
        return schedule.velocities, latents

    def _model(self, fp8: bool, dtype: torch.dtype) -> StreamingTransformer:
        if not fp8:  # the float32 model has the same bf16 values
            model = random_transformer(self.config, self.device, torch.bfloat16)
            return (model if dtype == torch.bfloat16 else model.to(dtype)).fuse()
        quantiser = Quantiser()
        model = random_transformer(self.config, self.device, torch.bfloat16, place=quantiser.place)
        quantiser.install(model)
        return model.fuse()

    def _denoiser(
        self, model: StreamingTransformer, attention: torch.dtype | None
    ) -> tuple[LocalDenoiser, RecordedSchedule]:
        schedule = RecordedSchedule.flow_match(NUM_STEPS)
        assert isinstance(schedule, RecordedSchedule)
        pieces = CompiledPieces.on(self.device) if model.dtype == torch.bfloat16 else CompiledPieces()
        return LocalDenoiser(model, self.geometry, schedule, pieces=pieces, ring_dtype=attention), schedule

    def _conditions(self, num_blocks: int) -> Conditions:
        generator = torch.Generator().manual_seed(1)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        channels, _, height, width = self.geometry.block_shape
        return Conditions(
            text=normal(min(PROMPT_TOKENS, self.config.text_len), self.config.text_dim),
            reference=normal(channels, 1, height, width),
            motion=normal(channels, MOTION_LATENT_FRAMES, height, width),
            audio=HeldAudio(normal(1, NUM_HIDDEN_STATES, self.config.audio_dim, num_blocks * BLOCK_FRAMES)),
        )


def velocity_errors(trial: Trial) -> dict[str, Any]:
    """Errors against float32 for the first block, with empty rings, and the last, with full rings."""
    exact, _ = trial.run(ERROR_BLOCKS, dtype=torch.float32)
    settings: dict[str, dict[str, Any]] = {
        "bf16": {},
        "bf16, attention int8": {"attention": torch.int8},
        "fp8": {"fp8": True},
        "fp8, attention int8": {"fp8": True, "attention": torch.int8},
    }
    figures = {}
    for name, setting in settings.items():
        found, _ = trial.run(ERROR_BLOCKS, **setting)
        figures[name] = {
            "empty_rings": errors(found[:NUM_STEPS], exact[:NUM_STEPS]),
            "full_rings": errors(found[-NUM_STEPS:], exact[-NUM_STEPS:]),
        }
    return figures


def drift(trial: Trial, num_blocks: int) -> dict[str, list[float]]:
    """Distance of each block's latents from those with bf16 weights and attention, relative to their norm."""
    _, plain = trial.run(num_blocks)
    curves = {}
    for name, setting in {
        "bf16, attention int8": {"attention": torch.int8},
        "fp8": {"fp8": True},
        "fp8, attention int8": {"fp8": True, "attention": torch.int8},
    }.items():
        _, found = trial.run(num_blocks, **setting)  # type: ignore[arg-type]
        pairs = zip(found, plain, strict=True)
        curves[name] = [round(float((a - b).norm() / b.norm()), 5) for a, b in pairs]
    return curves


def main() -> None:
    """Write errors and drift, at the model's full width, as JSON to standard output."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--layers", type=int, default=4, metavar="N", help="of the 40 (4)")
    parser.add_argument("--size", default="704*384", metavar="W*H")
    parser.add_argument("--blocks", type=int, default=40, metavar="N", help="of the drift (40)")
    args = parser.parse_args()
    config = ModelConfig(num_layers=args.layers, audio_inject_layers=tuple(range(0, args.layers, 4)))
    trial = Trial(config, Geometry.of(Size.parse(args.size), 48), best_device())
    figures = {
        "layers": args.layers,
        "size": args.size,
        "velocity_errors": velocity_errors(trial),
        "drift": drift(trial, args.blocks),
        "machine": machine(trial.device),
    }
    json.dump(figures, sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
