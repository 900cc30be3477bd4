"""The prompt encoder spread over two GPUs by NCCL: the same values, in the planned memory, and none stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed
from transformers import UMT5Config, UMT5EncoderModel

from avatar.distributed.fsdp_text import encode_together
from avatar.distributed.process_groups import Group
from avatar.distributed.rendezvous import RankContext
from avatar.model.text_encoder import TextEncoder, TextWeights
from avatar.model.weights.tiny import random_tensors, write_shards
from avatar.planning.estimates import GATHERED_TEXT_BLOCKS
from avatar.planning.layout import Layout
from tests.distributed import ranks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs"),
]

CONFIG = UMT5Config(
    vocab_size=4096, d_model=1024, d_ff=2048, num_heads=16, num_layers=8, feed_forward_proj="gated-gelu"
)
BLOCK_BYTES = 4 * (4 * 1024 * 1024 + 3 * 1024 * 2048)
IDS = torch.tensor([[5, 9, 200, 3000, 1]])


def measured(group: Group, path: Path) -> list[Any]:
    """Each rank's values, twice; and for each time its peak, and what is left, in bytes."""
    context, found = RankContext(group.rank, 2, group.device, group.meter, ""), []
    square = torch.ones(64, 64, device=group.device)
    square @ square  # cuBLAS keeps a workspace from its first product on
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats(group.device)
        before = torch.cuda.memory_allocated(group.device)
        text = encode_together(TextWeights.open(path), IDS, torch.float32, context)
        peak = torch.cuda.max_memory_allocated(group.device) - before
        left = torch.cuda.memory_allocated(group.device) - before - text.nbytes
        found.append((text.cpu(), peak, left))
        del text
    reported: list[Any] = [None, None]
    distributed.all_gather_object(reported, found)
    return reported


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A transformers folder of random tensors."""
    folder = tmp_path_factory.mktemp("text_encoder")
    with torch.device("meta"):
        model = UMT5EncoderModel(CONFIG)
    tensors = random_tensors(model, torch.Generator().manual_seed(2), torch.float32)
    del tensors["encoder.embed_tokens.weight"]
    CONFIG.save_pretrained(folder)
    write_shards(folder, "model", tensors, 2)
    return folder


def test_two_gpus_encode_a_prompt_as_one_does(folder, tmp_path):
    case = ranks.Case("text", Layout("layers", 2), measured, folder)
    result = ranks.play([case], tmp_path, num_ranks=2, on_gpus=True)["text"]
    assert isinstance(result, list), result
    expected = TextEncoder.load(folder, "cuda", torch.float32).encode(IDS).cpu()
    planned = BLOCK_BYTES * (CONFIG.num_layers / 2 + GATHERED_TEXT_BLOCKS)
    for text, peak, left in (found for rank in result for found in rank):
        assert (text - expected).norm() / expected.norm() < 1e-6
        assert peak < 1.05 * planned
        assert left < 2**20
