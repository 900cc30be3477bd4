"""Denoising and decoding are compiled by two threads of one rank at the same time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from avatar.geometry import FPS, Size
from avatar.media.intake import open_request
from avatar.media.sample_inputs import write_sample
from avatar.pipeline.pipeline import DiffusionPipeline
from avatar.preset import load_preset
from avatar.request import Request
from avatar.runtime.engine import FrameSource
from avatar.runtime.local_ranks import Limits
from avatar.runtime.ranked_source import RankedSource

NUM_FRAMES = 36  # three blocks


def frames(source: FrameSource, request: Request) -> np.ndarray:
    batches = [item for item in source.frames(request, lambda: False) if isinstance(item, np.ndarray)]
    return np.concatenate(batches)


@pytest.mark.slow
def test_compiled_ranks_give_what_one_device_gives(tmp_path: Path, tiny_checkpoint, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    alone = load_preset("self-test")
    preset = alone.with_settings(layout="layers", num_gpus_dit=2)
    inputs = write_sample(tmp_path, Size.parse(alone.generation.size), NUM_FRAMES / FPS)
    asked, expected = (
        open_request(*inputs, chosen, output=tmp_path / f"{name}.mp4", work=tmp_path / name)
        for name, chosen in (("ranks", preset), ("alone", alone))
    )
    limits = Limits(silence_s=60.0, start_s=240.0, stall_s=120.0)
    source = RankedSource(preset, tiny_checkpoint, roles="tests.distributed.compiled_roles", limits=limits)
    try:
        found = frames(source, asked)
    finally:
        source.close()
    one = frames(DiffusionPipeline(alone, tiny_checkpoint), expected)
    assert found.shape == one.shape
    assert np.abs(found.astype(int) - one).max() <= 1
