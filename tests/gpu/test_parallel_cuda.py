"""Layouts over two GPUs, by NCCL: as one GPU makes it, compiled, after a cancel, request after request."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from avatar.checkpoints.transformer_config import ModelConfig
from avatar.distributed.coordinator import Coordinator, assist
from avatar.distributed.loading import share
from avatar.distributed.process_groups import Group
from avatar.errors import Cancelled
from avatar.geometry import Geometry, Size
from avatar.model.transformer import StreamingTransformer, held_dtype
from avatar.model.weights.random_weights import random_transformer
from avatar.pipeline.denoiser import Denoiser, LocalDenoiser
from avatar.pipeline.flow_match_euler import Schedule
from avatar.pipeline.layer_stack import CompiledPieces
from avatar.pipeline.rollout import rollout
from avatar.planning.layout import Layout
from tests.distributed import ranks, streams
from tests.pipeline.streams import relative_error

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs"),
]

CONFIG = ModelConfig(
    dim=1280,
    ffn_dim=2560,
    num_heads=10,
    num_layers=6,
    freq_dim=64,
    text_dim=streams.CONFIG.text_dim,
    text_len=32,
    audio_dim=streams.CONFIG.audio_dim,
    audio_inject_layers=(0, 3, 5),
)
SIZES = (Size(384, 256), Size(256, 384), Size(384, 256))
NUM_STEPS = 4
LAYOUTS = {
    "layers": Layout("layers", 2, config=CONFIG),
    "timesteps": Layout("timesteps", 2, config=CONFIG),
    "ulysses": Layout("ulysses", 1, 2, config=CONFIG),
    "fsdp": Layout("fsdp", 1, 2, config=CONFIG),
    "decode_apart": Layout("local", 1, 1, True, config=CONFIG),
}
# As in the CPU's test of bfloat16, for each of two that are compared.
BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 2 * (14 * CONFIG.num_layers) ** 0.5 * 2**-9}


@functools.cache
def weights() -> dict[str, Tensor]:
    return random_transformer(CONFIG, "cpu", torch.float32, seed=5).state_dict()


def fill(device: torch.device, dtype: torch.dtype, select: Callable[[str], bool]) -> StreamingTransformer:
    with torch.device("meta"):
        model = StreamingTransformer(CONFIG).requires_grad_(False)
    stored = {name: tensor for name, tensor in weights().items() if select(name)}
    selected = {name: tensor.to(device, held_dtype(name, dtype)) for name, tensor in stored.items()}
    model.load_state_dict(selected, strict=False, assign=True)
    return model.requires_grad_(False)


def latents(denoiser: Denoiser, num_blocks: int = 9, cancelled: Callable[[], bool] = lambda: False) -> Tensor:
    given = streams.conditions(denoiser.geometry, num_speakers=2, pose=True)
    blocks = rollout(given, denoiser, num_blocks=num_blocks, seed=1, cancelled=cancelled)
    return torch.cat([block.cpu() for block in blocks], dim=1)


def compared(group: Group, options: dict[str, Any]) -> dict[str, Any] | None:
    """Errors against one GPU by size, the last after a run that was cancelled; and what rank 0 counted."""
    dtype, pieces = options["dtype"], CompiledPieces.compiled() if options["compiled"] else CompiledPieces()
    model = share(functools.partial(fill, group.device, dtype), group)
    if group.rank:
        assert model is not None
        streams.help_out(assist, group, model, dtype, pieces)
        return None
    conductor, schedule, errors = Coordinator(group, model, dtype, pieces), Schedule.flow_match(NUM_STEPS), []
    made = []
    for size in SIZES:
        denoiser = conductor.denoiser(Geometry.of(size, 24), schedule, dtype)
        made.append(latents(denoiser))
        denoiser.close()
        with pytest.raises(Cancelled):
            latents(denoiser, 500, lambda come=group.meter.ticks + 50: group.meter.ticks >= come)
    streams.dismiss(conductor)
    whole = fill(group.device, dtype, lambda name: True).fuse()
    for size, found in zip(SIZES, made, strict=True):
        alone = LocalDenoiser(whole, Geometry.of(size, 24), schedule, pieces=pieces, ring_dtype=dtype)
        errors.append(relative_error(found, latents(alone)))
    busy_s = group.meter.busy_s
    return {"errors": errors, "busy_s": busy_s, "same": torch.equal(made[0], made[2])}


CASES = [
    ranks.Case(f"{name}_{kind}", layout, compared, {"dtype": dtype, "compiled": kind == "compiled"})
    for name, layout in LAYOUTS.items()
    for kind, dtype in (("plain", torch.float32), ("compiled", torch.bfloat16))
    if name != "decode_apart" or kind == "compiled"
]


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("ranks")
    found = ranks.play(CASES, folder, num_ranks=2, on_gpus=True)
    logs = "\n".join(log.read_text()[-3000:] for log in sorted(folder.glob("*.log")))
    return {
        name: f"{result}\n{logs}" if isinstance(result, str) else result for name, result in found.items()
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_two_gpus_make_what_one_makes(case, results):
    result = results[case.name]
    assert isinstance(result, dict), result
    assert max(result["errors"]) < BOUNDS[case.options["dtype"]]
    assert result["same"]  # the same request twice, a cancelled one between
    assert (result["busy_s"] > 0) == (not case.layout.decodes_apart)
