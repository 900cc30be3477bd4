"""On a real GPU: every fast path works, and a run goes on without any one of them. Takes 25 GiB of a card."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2]
MEAN_LEVELS = 2.0  # of 255, by which frames may differ: other kernels round otherwise

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() < (9, 0),
        reason="needs an NVIDIA GPU with all fast paths: Hopper or later",
    ),
]


def made(fault: str, folder: Path) -> tuple[np.ndarray, list[str]]:
    """Frames of a run, and what it reported."""
    folder.mkdir()
    command = [sys.executable, "-m", "tests.gpu.faulty_run", fault, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    return np.load(folder / "frames.npy"), json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """A run with everything there."""
    frames, reported = made("none", tmp_path_factory.mktemp("runs") / "none")
    assert reported == []
    return frames


@pytest.mark.parametrize("fault", ["compile", "cudnn", "fp8", "pinned"])
def test_a_run_goes_on_without_a_fast_path(whole: np.ndarray, tmp_path: Path, fault: str):
    frames, reported = made(fault, tmp_path / fault)
    assert reported == [f"slow_{fault}"]
    assert frames.shape == whole.shape
    assert np.abs(frames.astype(float) - whole).mean() < MEAN_LEVELS


def test_a_run_goes_on_without_attention_in_8_bits(tmp_path: Path):
    """As with attention in bf16 over rings in fp8."""
    frames, reported = made("attention", tmp_path / "attention")
    expected, nothing = made("float8_rings", tmp_path / "rings")
    assert (reported, nothing) == (["slow_attention"], [])
    assert np.abs(frames.astype(float) - expected).mean() < MEAN_LEVELS


def test_the_table_of_a_whole_machine_is_all_yes():
    command = [sys.executable, "-m", "avatar.model.device_report"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    tables = json.loads(done.stdout)
    assert len(tables) == torch.cuda.device_count()
    assert all(check["ok"] for table in tables for check in table["checks"]), tables
