"""Runs whose prompts all ranks encode together: the same frames, run after run, whatever ends one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from avatar.checkpoints.locations import OFFICIAL
from avatar.errors import BadInput, Cancelled, WeightsMissing
from avatar.events import Phase, Progress
from avatar.geometry import FPS, Size
from avatar.media.intake import open_request
from avatar.media.sample_inputs import write_sample
from avatar.pipeline.pipeline import DiffusionPipeline
from avatar.preset import Preset, load_preset
from avatar.request import Request
from avatar.runtime.engine import FrameSource
from avatar.runtime.local_ranks import Limits
from avatar.runtime.ranked_source import RankedSource

LIMITS = Limits(silence_s=30.0, start_s=240.0, stall_s=60.0)
NUM_FRAMES = 20  # two blocks
LONG = 480  # frames of a run that is stopped on its way, which takes a moment to be heard
ALONE = load_preset("self-test")
LAYERS = ALONE.with_settings(text_encoder="sharded", layout="layers", num_gpus_dit=2, decode_gpu=True)
FSDP = ALONE.with_settings(text_encoder="sharded", layout="fsdp", num_gpus_dit=2)


@pytest.fixture(autouse=True)
def few_threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def ask(tmp_path: Path) -> Callable[..., Request]:
    def build(preset: Preset, prompt: str, num_frames: int = NUM_FRAMES) -> Request:
        folder = tmp_path / f"request-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        inputs = write_sample(folder, Size.parse(preset.generation.size), num_frames / FPS)
        return open_request(
            *inputs, preset, output=folder / "out.mp4", work=folder / "work", prompt=prompt, segment_s=0.4
        )

    return build


@contextmanager
def ranks(preset: Preset, weights: Path | None) -> Iterator[RankedSource]:
    source = RankedSource(preset, weights, limits=LIMITS)
    try:
        yield source
    finally:
        source.close()


def frames(source: FrameSource, request: Request) -> np.ndarray:
    batches = [item for item in source.frames(request, lambda: False) if isinstance(item, np.ndarray)]
    return np.concatenate(batches)


def pids(source: RankedSource) -> list[int]:
    return [child.pid for child in source.ranks.children]


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal but for the rounding of a pixel to one level or the next."""
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("preset", [LAYERS, FSDP], ids=["layers and a decode rank", "fsdp"])
def test_warm_ranks_encode_prompt_after_prompt_as_one_device_does(preset, ask, tiny_checkpoint):
    alone, made = DiffusionPipeline(ALONE, tiny_checkpoint), []
    with ranks(preset, tiny_checkpoint) as source:
        for prompt in ("A woman speaks.", "Two old men sing in the rain."):
            made.append(frames(source, ask(preset, prompt)))
            before = pids(source)
            assert_close(made[-1], frames(alone, ask(ALONE, prompt)))
        assert pids(source) == before
    assert np.abs(made[0].astype(int) - made[1]).max() > 1


@pytest.mark.slow
def test_no_run_that_ends_early_leaves_ranks_out_of_step(ask, checkpoint_copy):
    """Refused, without weights, cancelled while the prompt is encoded, and after it is."""
    file, aside = checkpoint_copy / OFFICIAL.text_encoder, checkpoint_copy / "aside"
    weights, alone = checkpoint_copy.parent, DiffusionPipeline(ALONE, checkpoint_copy.parent)
    with ranks(LAYERS, weights) as source:
        frames(source, ask(LAYERS, "one"))
        before = pids(source)
        with pytest.raises(BadInput, match="tokens long"):
            frames(source, ask(LAYERS, "x" * 600))
        file.rename(aside)
        with pytest.raises(WeightsMissing, match=OFFICIAL.text_encoder):
            frames(source, ask(LAYERS, "two"))
        aside.rename(file)
        for phase in (Phase.ENCODING, Phase.GENERATING):
            cancel(source, ask(LAYERS, f"cancelled at {phase}", LONG), phase)
        assert_close(frames(source, ask(LAYERS, "three")), frames(alone, ask(ALONE, "three")))
        assert pids(source) == before


def cancel(source: RankedSource, request: Request, phase: Phase) -> None:
    """Once it tells that it has come to a phase."""
    seen: list[Phase] = []
    with pytest.raises(Cancelled):
        seen.extend(
            item.phase for item in source.frames(request, lambda: phase in seen) if isinstance(item, Progress)
        )
