"""Ranks on real GPUs: when one is killed, all that they held is free within seconds, and fresh ones go on."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from avatar.errors import Cancelled, WorkerLost
from avatar.geometry import Size
from avatar.hardware.nvml import open_driver
from avatar.media.intake import open_request
from avatar.media.sample_inputs import write_sample
from avatar.preset import load_preset
from avatar.request import Request
from avatar.runtime.ranked_source import RankedSource

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs"),
]

PRESET = load_preset("self-test").with_settings(layout="layers", num_gpus_dit=2)
CONTEXT_BYTES = 200 * 2**20  # the least that a process takes of a GPU
FREE_S = 10.0


def ask(folder: Path, seconds: float) -> Request:
    folder.mkdir()
    sample = write_sample(folder, Size(64, 64), seconds)
    return open_request(*sample, PRESET, output=folder / "out.mp4", work=folder / "work")


def used_bytes() -> list[int]:
    driver = open_driver()
    found = [memory.used_bytes for card in driver.cards if (memory := card.memory()) is not None]
    driver.close()
    return found[:2]


@pytest.fixture
def source():
    source = RankedSource(PRESET)
    yield source
    source.close()


@pytest.mark.parametrize("rank", [1, 0])
def test_a_killed_ranks_memory_is_free_within_seconds(source, rank, tmp_path, capsys):
    frames = source.frames(ask(tmp_path / "killed", 20.0), lambda: False)
    assert any(isinstance(item, np.ndarray) for item in frames)  # up to the first
    held = used_bytes()
    os.kill(source.ranks.children[rank].pid, signal.SIGKILL)
    killed = time.monotonic()
    with pytest.raises(WorkerLost, match=f"Rank {rank} .*was killed by SIGKILL"):
        list(frames)
    while any(before - now < CONTEXT_BYTES for before, now in zip(held, used_bytes(), strict=True)):
        assert time.monotonic() - killed < FREE_S
        time.sleep(0.05)
    with capsys.disabled():
        print(f"rank {rank} killed: memory free after {time.monotonic() - killed:.2f} s")  # noqa: T201
    again = source.frames(ask(tmp_path / "again", 1.0), lambda: False)
    assert sum(len(item) for item in again if isinstance(item, np.ndarray)) == 25


def test_a_cancelled_run_leaves_the_same_ranks_for_the_next(source, tmp_path):
    stop: list[bool] = []
    frames = source.frames(ask(tmp_path / "cancelled", 20.0), lambda: bool(stop))
    assert any(isinstance(item, np.ndarray) for item in frames)  # up to the first
    ranks = [child.pid for child in source.ranks.children]
    stop.append(True)
    with pytest.raises(Cancelled):
        list(frames)
    again = source.frames(ask(tmp_path / "again", 1.0), lambda: False)
    assert sum(len(item) for item in again if isinstance(item, np.ndarray)) == 25
    assert [child.pid for child in source.ranks.children] == ranks
