"""Frames on their way to the host leave other threads' work alone."""

from __future__ import annotations

import threading

import pytest
import torch

from avatar.pipeline.device import downloaded

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

CYCLES = 4_000_000_000  # some seconds


def test_other_threads_give_the_gpu_work_while_a_copy_waits():
    values = torch.arange(10_000, device="cuda").reshape(100, 100)
    other, number = torch.cuda.Stream(), torch.ones(1, device="cuda")
    for _ in range(2):  # kernels and page-locked memory that are made at first use are there
        torch.cuda._sleep(1)
        number += 1
        assert torch.equal(downloaded(values[::2]), values[::2].cpu())
    found = []

    def wait_and_copy() -> None:
        torch.cuda._sleep(CYCLES)
        found.append(downloaded(values[::2]))

    waiting = threading.Thread(target=wait_and_copy)
    waiting.start()
    with torch.cuda.stream(other):
        for _ in range(100):
            number += 1
        other.synchronize()
    assert waiting.is_alive()
    waiting.join()
    assert torch.equal(found[0], values[::2].cpu())
    assert not found[0].is_pinned()
