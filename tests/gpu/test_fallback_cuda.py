"""Memory that shrinks while a full-size model runs: it steps down and goes on. Takes 60 GiB of a card."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from avatar.bench.random_parts import random_parts
from avatar.events import Notice
from avatar.geometry import FPS, Size
from avatar.media.intake import open_request
from avatar.media.sample_inputs import write_sample
from avatar.pipeline.model_loading import MadeModels
from avatar.pipeline.pipeline import DiffusionPipeline
from avatar.planning.plan import GIB
from avatar.preset import Fallback, load_preset
from tests.fixtures.local_ranks import LocallyRanked

NEEDED_BYTES = 60 * GIB
NUM_FRAMES = 105  # 9 blocks
FULL = replace(
    load_preset("80gb").with_settings(weight_dtype="fp8"),
    fallback=Fallback(("infer_frames", "size", "offload")),
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.mem_get_info()[1] < NEEDED_BYTES,
        reason="needs an NVIDIA GPU of 80 GB",
    ),
]


@pytest.fixture
def total_bytes():
    """Of the card; afterwards all of it may be used again."""
    yield torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def cap(limit_bytes: int, total_bytes: int) -> None:
    """From here on there is no more; what torch keeps unused is given back."""
    torch.cuda.set_per_process_memory_fraction(limit_bytes / total_bytes)
    torch.cuda.empty_cache()


def test_a_run_follows_a_cap_that_is_lowered_twice(tmp_path: Path, total_bytes: int):
    """First 32 frames of window are enough; then, at a third of the first cap, layers must leave."""
    inputs = write_sample(tmp_path, Size(704, 384), NUM_FRAMES / FPS)
    request = open_request(*inputs, FULL, output=tmp_path / "out.mp4", work=tmp_path / "work")

    def fresh() -> DiffusionPipeline:
        gc.collect()  # a process of its own would have taken all with it
        torch.cuda.empty_cache()
        models = MadeModels(lambda request, placement, check: random_parts(request.preset, placement))
        return DiffusionPipeline(FULL, models=models)

    source = LocallyRanked(FULL, fresh)
    caps = {1: 46 * GIB, 4: 17 * GIB}  # batches of frames made, and what may be used from then on
    batches: list[np.ndarray] = []
    peaks: list[int] = []
    rungs: list[str | None] = []
    for item in source.frames(request, lambda: False):
        if isinstance(item, Notice):
            rungs.append(item.rung)
        elif isinstance(item, np.ndarray):
            batches.append(item)
            peaks.append(torch.cuda.max_memory_reserved())
            if len(batches) in caps:
                cap(caps[len(batches)], total_bytes)
            torch.cuda.reset_peak_memory_stats()
    assert rungs == ["infer_frames", "size", "offload"]
    assert [len(batch) for batch in batches] == [9] + 8 * [12]
    assert {batch.shape[1:] for batch in batches} == {(384, 704, 3)}
    assert max(peaks[2:4]) <= caps[1]
    assert max(peaks[5:]) <= caps[4]
    source.close()
    del source
    gc.collect()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_allocated() < GIB
