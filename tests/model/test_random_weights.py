"""Random weights: every tensor filled, on the right device and in the right dtype."""

from __future__ import annotations

import torch

from avatar.model.weights.random_weights import random_transformer
from tests.pipeline.streams import Stream


def test_all_tensors_are_finite_and_in_dtype():
    tensors = random_transformer(Stream.load("basic").config, "cpu", torch.bfloat16).state_dict()
    for name, tensor in tensors.items():
        wide = name.startswith("casual_audio_encoder.")
        assert tensor.dtype == (torch.float32 if wide else torch.bfloat16), name
    assert all(t.isfinite().all() for t in tensors.values())


def test_velocities_stay_near_one():
    stream = Stream.load("basic")
    denoiser = stream.denoiser(random_transformer(stream.config, "cpu", torch.float32).fuse())
    stream.run(denoiser)
    assert all(0.1 < float(v.std()) < 10 for v in denoiser.schedule.velocities)


def test_selection_and_placement():
    def place(name: str, tensor: torch.Tensor) -> torch.nn.Parameter | None:
        return torch.nn.Parameter(tensor.half(), requires_grad=False) if "ffn" in name else None

    config = Stream.load("basic").config
    model = random_transformer(
        config, "cpu", torch.float32, select=lambda n: n.startswith("blocks.1."), place=place
    )
    for name, tensor in model.state_dict().items():
        assert tensor.is_meta != name.startswith("blocks.1.")
        assert tensor.is_meta or tensor.dtype == (torch.half if "ffn" in name else torch.float32)


def test_same_seed_same_weights():
    config = Stream.load("basic").config
    first, second, other = (
        random_transformer(config, "cpu", torch.float32, seed=s).state_dict() for s in (1, 1, 2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["head.head.weight"], other["head.head.weight"])
