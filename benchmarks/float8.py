"""Accuracy and speed of 8-bit weights on a device: error of velocities, speed of the linear layers.

`python -m benchmarks.float8` writes JSON, for fp8 or, with `--weight_dtype int8`, for int8; weights are
random, at the real model's widths.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from avatar.bench.measure import machine
from avatar.checkpoints.transformer_config import ModelConfig
from avatar.geometry import BLOCK_FRAMES, BLOCK_LATENT_FRAMES, MOTION_LATENT_FRAMES, Geometry, Size
from avatar.model.audio_injection import NUM_HIDDEN_STATES
from avatar.model.compile import compiled
from avatar.model.linear_8bit import LINEARS, Quantiser
from avatar.model.products_8bit import ON_TENSOR_CORES, product_on
from avatar.model.quantize import INT8, hadamard, is_quantised, quantise_rows, quantise_weight
from avatar.model.transformer import StreamingTransformer
from avatar.model.weights.random_weights import random_transformer
from avatar.pipeline.denoiser import Conditions, HeldAudio, LocalDenoiser
from avatar.pipeline.device import QUANTISED, best_device
from avatar.pipeline.flow_match_euler import Schedule
from avatar.pipeline.rollout import rollout

NUM_BLOCKS, NUM_STEPS = 2, 4
PROMPT_TOKENS = 128
PARTS = ("self_attn", "cross_attn", "ffn.0", "ffn.2", "injector")
MEASURE_S = 0.3  # per speed measurement

Place = Callable[[str, Tensor], nn.Parameter | None]


@dataclass(frozen=True)
class RecordedSchedule(Schedule):
    """A schedule that records every velocity passed to it."""

    velocities: list[Tensor] = field(default_factory=list)

    def advance(self, latents: Tensor, velocity: Tensor, step: int) -> Tensor:
        self.velocities.append(velocity.cpu())
        return super().advance(latents, velocity, step)


def velocity_errors(
    config: ModelConfig, geometry: Geometry, device: torch.device, weight_dtype: str = "fp8"
) -> dict[str, Any]:
    """Relative errors of velocities against bf16, for a format as a whole and for each part by itself.

    Random weights have no outliers: a trained model's activations may lose more. "bf16" is the error of bf16
    against float32, for comparison with the format's.
    """
    format = QUANTISED[weight_dtype]

    def model(place: Place = lambda name, tensor: None) -> StreamingTransformer:
        return random_transformer(config, device, torch.bfloat16, place=place)

    def quantised(part: str) -> StreamingTransformer:
        quantiser = Quantiser(format)
        made = model(lambda name, tensor: quantiser.place(name, tensor) if part in name else None)
        quantiser.install(made)
        return made

    reference = velocities(model(), geometry)
    return {
        "bf16": errors(reference, velocities(model().float(), geometry)),
        weight_dtype: errors(velocities(quantised(""), geometry), reference),
        "weights": errors(velocities(model(rounding(format)), geometry), reference),
        "parts": {part: errors(velocities(quantised(part), geometry), reference) for part in PARTS},
    }


def velocities(model: StreamingTransformer, geometry: Geometry) -> list[Tensor]:
    """Velocities of every block and step of a run on random conditions."""
    generator, config = torch.Generator().manual_seed(1), model.config

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    channels, _, height, width = geometry.block_shape
    conditions = Conditions(
        text=normal(min(PROMPT_TOKENS, config.text_len), config.text_dim),
        reference=normal(channels, 1, height, width),
        motion=normal(channels, MOTION_LATENT_FRAMES, height, width),
        audio=HeldAudio(normal(1, NUM_HIDDEN_STATES, config.audio_dim, NUM_BLOCKS * BLOCK_FRAMES)),
    )
    schedule = RecordedSchedule.flow_match(NUM_STEPS)
    assert isinstance(schedule, RecordedSchedule)
    denoiser = LocalDenoiser(model.fuse(), geometry, schedule)
    for _ in rollout(conditions, denoiser, num_blocks=NUM_BLOCKS, seed=0):
        pass
    return schedule.velocities


def rounding(format: torch.dtype) -> Place:
    """Gives weights a format's rounding error, in their own dtype, so that activations stay exact."""

    def place(name: str, tensor: Tensor) -> nn.Parameter | None:
        if not is_quantised(name, tensor.shape):
            return None
        weight, scale = quantise_weight(tensor, format)
        restored = weight.float() * scale[:, None]
        if format == INT8:
            restored = hadamard(restored)  # turns it back
        return nn.Parameter(restored.to(tensor.dtype), requires_grad=False)

    return place


def errors(found: list[Tensor], expected: list[Tensor]) -> dict[str, float]:
    """Norms of differences over norms. first: at block 0, step 0, before latents diverge."""
    relative = [
        float((a.double() - b.double()).norm() / b.double().norm())
        for a, b in zip(found, expected, strict=True)
    ]
    return {"first": relative[0], "mean": sum(relative) / len(relative), "largest": max(relative)}


def linear_speeds(
    config: ModelConfig, geometry: Geometry, device: torch.device, weight_dtype: str = "fp8"
) -> list[dict[str, Any]]:
    """Speed of the large linear layers: bf16, 8 bits with compiled quantisation, the 8-bit product alone."""
    num_tokens = BLOCK_LATENT_FRAMES * geometry.frame_tokens
    dim, ffn_dim = config.dim, config.ffn_dim
    shapes = {"qkv": (dim, 3 * dim), "o": (dim, dim), "ffn.0": (dim, ffn_dim), "ffn.2": (ffn_dim, dim)}
    return [
        {"layer": name, **linear_speed(num_tokens, *shape, device, weight_dtype)}
        for name, shape in shapes.items()
    ]


def linear_speed(
    num_tokens: int, in_features: int, out_features: int, device: torch.device, weight_dtype: str
) -> dict[str, Any]:
    """Milliseconds, TFLOPS of the product, and the error against plain arithmetic."""
    format = QUANTISED[weight_dtype]
    linear = nn.Linear(in_features, out_features, device=device, dtype=torch.bfloat16).requires_grad_(False)
    quantised = LINEARS[format](*quantise_weight(linear.weight.data, format), linear.bias.data)
    x = torch.randn(num_tokens, in_features, device=device, dtype=torch.bfloat16)
    values, scale = quantise_rows(quantised.entering(x), format)
    exact = (values.double() * scale) @ (quantised.weight.double() * quantised.scale[:, None]).T
    fast = compiled(quantised)
    figures: dict[str, Any] = {
        "tokens": num_tokens,
        "in": in_features,
        "out": out_features,
        "product": product_on(device, format),
        "product_error": errors([quantised(x)], [exact + linear.bias])["first"],
        "bf16_ms": milliseconds(linear, x),
        f"{weight_dtype}_ms": milliseconds(fast, x),
    }
    if figures["product"] in ON_TENSOR_CORES:
        figures[f"{weight_dtype}_product_ms"] = milliseconds(lambda x: quantised.multiply(values, scale), x)
    operations = 2 * num_tokens * in_features * out_features
    tera = {
        name.replace("_ms", "_tflops"): operations / ms / 1e9
        for name, ms in figures.items()
        if name.endswith("_ms")
    }
    return figures | tera


def milliseconds(layer: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Median time of a call, after a first call to compile and warm up."""
    with torch.no_grad():
        layer(x)
        return (
            Timer("layer(x)", globals={"layer": layer, "x": x})
            .blocked_autorange(min_run_time=MEASURE_S)
            .median
            * 1000
        )


def main() -> None:
    """Write errors and speeds, at the model's full width, as JSON to standard output."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--layers", type=int, default=4, metavar="N", help="of the 40 (4)")
    parser.add_argument("--size", default="704*384", metavar="W*H")
    parser.add_argument("--weight_dtype", choices=QUANTISED, default="fp8")
    args = parser.parse_args()
    config = ModelConfig(num_layers=args.layers, audio_inject_layers=tuple(range(0, args.layers, 4)))
    geometry, device = Geometry.of(Size.parse(args.size), 48), best_device()
    figures = {
        "layers": args.layers,
        "size": args.size,
        "weight_dtype": args.weight_dtype,
        "velocity_errors": velocity_errors(config, geometry, device, args.weight_dtype),
        "linear_speeds": linear_speeds(config, geometry, device, args.weight_dtype),
        "machine": machine(device),
    }
    json.dump(figures, sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
