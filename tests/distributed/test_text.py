"""The prompt encoder spread over ranks gives what one device gives; no rank has it whole, none keeps it."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from avatar.distributed.fsdp_text import encode_together, sharded
from avatar.distributed.process_groups import Group
from avatar.distributed.rendezvous import RankContext
from avatar.model.text_encoder import TextEncoder, TextWeights
from avatar.model.weights.checkpoint import open_checkpoint
from avatar.model.weights.tiny import TEXT
from avatar.planning.layout import Layout
from tests.distributed import ranks
from tests.distributed.ranks import Case

FLOAT = torch.float32
PROMPTS = ([[5, 9, 200, 1]], [[383, 1]], [[5, 9, 200, 1]])


def context_of(group: Group) -> RankContext:
    return RankContext(group.rank, group.layout.world_size, group.device, group.meter, "")


def encoded(group: Group, path: Path) -> dict[str, Any]:
    """Several prompts in a row; how many shards are left after each, garbage counted, and process groups."""
    texts, left = [], []
    gc.disable()
    for ids in PROMPTS:
        weights = TextWeights.open(path)
        texts.append(encode_together(weights, torch.tensor(ids), FLOAT, context_of(group)))
        shards = sum(issubclass(type(thing), DTensor) for thing in gc.get_objects())
        left.append((shards, len(distributed.distributed_c10d._world.pg_names)))
    gc.enable()
    return {"texts": texts, "left": left, "ticks": group.meter.ticks}


def held(group: Group, path: Path) -> list[tuple[int, int]]:
    """Each rank's own bytes, and the most blocks that it had whole at a time."""
    mesh = init_device_mesh(group.device.type, (group.layout.world_size,))
    model = sharded(TextWeights.open(path), FLOAT, mesh, context_of(group)).model
    num_bytes = sum(value.to_local().nbytes for value in model.parameters() if isinstance(value, DTensor))
    whole = []
    for block in model.encoder.block:
        block.layer[0].register_forward_hook(
            lambda *_: whole.append(sum(is_whole(other) for other in model.encoder.block))
        )
    with torch.no_grad():
        model(input_ids=torch.tensor(PROMPTS[0]))
    found: list[Any] = [None] * group.layout.world_size
    distributed.all_gather_object(found, (num_bytes, max(whole)))
    return found


def is_whole(module: torch.nn.Module) -> bool:
    return not any(isinstance(value, DTensor) for value in module.parameters())


@pytest.fixture(scope="module", params=[2, 3])
def world_size(request) -> int:
    return request.param


@pytest.fixture(scope="module")
def results(tmp_path_factory, tiny_checkpoint, tiny_diffusers_checkpoint, world_size) -> dict[str, Any]:
    """The same of either layout of the checkpoint; rank 0 decodes."""
    layout = Layout("layers", world_size - 1, 1, decodes_apart=True)
    folders = {"pth": tiny_checkpoint, "folder": tiny_diffusers_checkpoint}
    cases = [
        Case(f"{play.__name__}_{name}", layout, play, open_checkpoint(folder).text_encoder)
        for name, folder in folders.items()
        for play in (encoded, held)
    ]
    return ranks.play(cases, tmp_path_factory.mktemp("ranks"), num_ranks=world_size)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pth", "folder"])
def test_ranks_encode_a_prompt_as_one_device_does(name, results, tiny_checkpoint):
    result = results[f"encoded_{name}"]
    assert isinstance(result, dict), result
    alone = TextEncoder.load(open_checkpoint(tiny_checkpoint).text_encoder, "cpu", FLOAT)
    for ids, text in zip(PROMPTS, result["texts"], strict=True):
        expected = alone.encode(torch.tensor(ids))
        assert text.shape == expected.shape
        assert (text - expected).norm() / expected.norm() < 1e-6
    assert result["ticks"] >= len(PROMPTS) * (TEXT.num_layers + 1)


@pytest.mark.parametrize("name", ["pth", "folder"])
def test_nothing_of_it_stays(name, results):
    assert results[f"encoded_{name}"]["left"] == [(0, 1)] * len(PROMPTS)


@pytest.mark.parametrize("name", ["pth", "folder"])
def test_no_rank_has_it_whole(name, results, world_size, tiny_checkpoint):
    blocks = TextWeights.open(open_checkpoint(tiny_checkpoint).text_encoder).model.encoder
    values = sum(value.numel() for value in blocks.parameters()) - blocks.embed_tokens.weight.numel()
    result = results[f"held_{name}"]
    assert isinstance(result, list), result
    for num_bytes, most_whole in result:
        assert num_bytes == pytest.approx(4 * values / world_size, rel=0.05)
        assert most_whole == 1
    assert sum(num_bytes for num_bytes, _ in result) == 4 * values
