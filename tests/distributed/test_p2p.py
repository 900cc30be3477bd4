"""Messages as bytes."""

from __future__ import annotations

import pickle

import pytest
import torch

from avatar.distributed.p2p import Done, OpenBlockInputs, pack
from avatar.pipeline.denoiser import Block


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(3, 4),
        torch.randn(2, 3).to(torch.bfloat16),
        torch.randn(4, 6).to(torch.float8_e4m3fn),
        torch.arange(5),
        torch.empty(0),
        torch.randn(6, 4)[::2, 1:],
        torch.tensor(2.5),
    ],
)
def test_a_tensor_survives(tensor):
    found = pickle.loads(pack(Done(3, 1, tensor))).latents
    assert found.dtype == tensor.dtype
    assert found.shape == tensor.shape
    assert torch.equal(found.float(), tensor.float())
    found.zero_()  # its own memory, and writable


def test_a_slice_does_not_drag_its_storage_along():
    assert len(pack(Done(0, 0, torch.zeros(1000, 1000)[0, :10]))) < 1000


def test_a_block_survives():
    block = Block(4, torch.empty(0), torch.randn(2, 25, 3, 12), None, (4, 9))
    found = pickle.loads(pack(OpenBlockInputs(block, 1)))
    assert (found.anchor, found.block.index, found.block.pose, found.block.distances) == (1, 4, None, (4, 9))
    assert torch.equal(found.block.audio, block.audio)
