"""The golden streams on a GPU: parity, compiled bfloat16, no waiting inside a step, same bits twice."""

from __future__ import annotations

import pytest
import torch

from avatar.pipeline.denoiser import LocalDenoiser
from avatar.pipeline.layer_stack import CompiledPieces
from avatar.pipeline.rollout import rollout
from tests.pipeline.streams import NAMES, Stream, relative_error

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("full_float32"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


def on_gpu(stream: Stream, dtype: torch.dtype, **options) -> LocalDenoiser:
    return stream.denoiser(stream.transformer(dtype).to("cuda"), **options)


@pytest.mark.parametrize("name", NAMES)
def test_float32_parity(name):
    stream = Stream.load(name)
    denoiser = on_gpu(stream, torch.float32)
    latents = stream.run(denoiser).cpu()
    found = torch.stack(denoiser.schedule.velocities).cpu().view_as(stream.tensors["velocities"])
    assert relative_error(found, stream.tensors["velocities"]) < 1e-4
    assert relative_error(latents, stream.tensors["latents"]) < 1e-4


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("compiled", [False, True])
def test_bfloat16_within_the_bound_of_the_cpu_test(name, compiled):
    stream = Stream.load(name)
    denoiser = on_gpu(stream, torch.bfloat16, pieces=CompiledPieces.compiled() if compiled else None)
    bound = (14 * stream.config.num_layers) ** 0.5 * 2**-9
    assert relative_error(stream.run(denoiser).cpu(), stream.tensors["latents"]) < bound
    velocities = torch.stack(denoiser.schedule.velocities).cpu().view_as(stream.tensors["velocities"])
    assert relative_error(velocities, stream.tensors["velocities"]) < bound


@pytest.mark.parametrize("compiled", [False, True])
def test_no_step_waits_for_the_gpu(compiled):
    stream = Stream.load("refresh_pose")
    denoiser = on_gpu(stream, torch.bfloat16, pieces=CompiledPieces.compiled() if compiled else None)
    denoiser.begin(stream.conditions)
    for block in stream.blocks():
        denoiser.submit(block)
        (opened,) = denoiser._submitted
        try:
            if block.index:  # block 0 builds graphs and kernels
                torch.cuda.set_sync_debug_mode("error")
            for _ in range(denoiser.schedule.num_steps):
                denoiser.advance([opened])
        finally:
            torch.cuda.set_sync_debug_mode("default")
        denoiser._submitted.clear()


def test_same_seed_same_bits():
    stream = Stream.load("basic")
    denoiser = on_gpu(stream, torch.bfloat16)
    first, second = (
        torch.cat(list(rollout(stream.conditions, denoiser, num_blocks=6, seed=5)), dim=1) for _ in range(2)
    )
    assert torch.equal(first, second)
