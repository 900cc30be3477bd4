"""Runs with the tiny decoder in the VAE's place: their frames, what is in memory, going on, several ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from avatar.bench.random_parts import random_parts
from avatar.bench.run import bench
from avatar.errors import WeightsMissing
from avatar.geometry import Size
from avatar.media.intake import open_request
from avatar.media.sample_inputs import write_sample
from avatar.model.vae.tiny_decoder import TinyDecoder
from avatar.model.weights.checkpoint import open_checkpoint
from avatar.pipeline.components import Components
from avatar.pipeline.pipeline import DiffusionPipeline
from avatar.planning.placement import ALL_ON_GPU
from avatar.preset import load_preset
from avatar.request import Part, Request
from avatar.runtime.engine import FrameSource
from avatar.runtime.local_ranks import Limits
from avatar.runtime.ranked_source import RankedSource
from avatar.runtime.resume_state import ResumeState

FULL = load_preset("self-test")
TINY = FULL.with_settings(decoder="tiny")


@pytest.fixture
def ask(tmp_path: Path) -> Callable[..., Request]:
    def build(seconds: float, **settings: object) -> Request:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        inputs = write_sample(folder, Size(96, 96), seconds)
        preset = TINY.with_settings(**settings)
        return open_request(*inputs, preset, output=folder / "out.mp4", work=folder / "work")

    return build


def batches(source: FrameSource, request: Request) -> Iterator[np.ndarray]:
    return (item for item in source.frames(request, lambda: False) if isinstance(item, np.ndarray))


def video(source: FrameSource, request: Request) -> np.ndarray:
    return np.concatenate(list(batches(source, request)))


def test_blocks_have_the_vaes_frame_counts(ask, tiny_checkpoint):
    engine = DiffusionPipeline(TINY, tiny_checkpoint)
    found, usual = (list(batches(engine, ask(2.0, decoder=name))) for name in ("tiny", "full"))
    assert [part.shape for part in found] == [part.shape for part in usual]
    assert [len(part) for part in found] == [9, 12, 12, 12, 5]
    assert np.concatenate(found).std() > 5  # a picture, not one colour
    assert np.abs(np.concatenate(found).astype(int) - np.concatenate(usual)).mean() > 5  # and another one


def test_decoding_at_the_end_changes_no_bit(ask, tiny_checkpoint):
    engine = DiffusionPipeline(TINY, tiny_checkpoint)
    whole = video(engine, ask(1.0))
    assert np.array_equal(video(engine, ask(1.0, enable_online_decode=False)), whole)


def test_the_vaes_decoder_is_not_in_memory(tiny_checkpoint):
    files = open_checkpoint(tiny_checkpoint)
    full, tiny = (Components.load(preset.memory, files) for preset in (FULL, TINY))
    assert full.decoder is full.vae
    assert isinstance(tiny.decoder, TinyDecoder)
    kept = ("encoder.", "quant_conv.")
    expected = {name for name in full.vae.model.state_dict() if name.startswith(kept)}
    assert set(tiny.vae.model.state_dict()) == expected
    picture = torch.rand(1, 3, 1, 64, 64) * 2 - 1
    assert torch.equal(tiny.vae.encode_still(picture, 9), full.vae.encode_still(picture, 9))
    clip = picture.repeat(1, 1, 5, 1, 1)
    assert torch.equal(tiny.vae.encode(clip), full.vae.encode(clip))


def test_side_models_on_the_host_leave_the_tiny_decoder(tiny_checkpoint, ask):
    files = open_checkpoint(tiny_checkpoint)
    away = replace(ALL_ON_GPU, side_models_on_host=True)
    parts = Components.load(TINY.memory, files, placement=away)
    assert isinstance(parts.decoder, TinyDecoder)
    latents = torch.randn(1, 16, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    here = Components.load(TINY.memory, files).decoder
    found, expected = (one.decoder.start(one.decoder_input(latents))[0] for one in (parts.decoder, here))
    assert torch.equal(found, expected)


def test_a_missing_file_is_refused_before_the_vae_loads(tiny_checkpoint):
    files = replace(open_checkpoint(tiny_checkpoint), tiny_decoder=None, vae=Path("not read"))
    with pytest.raises(WeightsMissing, match=r"taew2_1\.pth, is not here") as caught:
        Components.load(TINY.memory, files)
    assert "download --decoder tiny" in caught.value.remedy


def test_a_run_goes_on_from_the_frames_that_were_shown(ask, tiny_checkpoint, tmp_path):
    """As after a restart: a fresh pipeline gets the last 73 frames, and no frame is missing or repeated."""
    whole = ask(3.6)
    carry, rest = tmp_path / "carry", tmp_path / "rest"
    first = DiffusionPipeline(TINY, tiny_checkpoint)
    part = Part("run", 0, 33, carry=None, leave=carry)
    begun = video(first, replace(whole, num_frames=33, part=part))
    assert len(begun) == 33
    later = replace(whole, num_frames=57, part=Part("run", 33, 57, carry=carry), work=rest)
    assert ResumeState.of(later).next_frame == 33
    gone_on = video(DiffusionPipeline(TINY, tiny_checkpoint), later)
    assert gone_on.shape == (57, *begun.shape[1:])
    again = video(DiffusionPipeline(TINY, tiny_checkpoint), later)
    assert np.array_equal(gone_on, again)


def test_another_decoder_is_loaded_anew(ask, tiny_checkpoint):
    engine = DiffusionPipeline(TINY, tiny_checkpoint)
    found = [video(engine, ask(0.4, decoder=name)) for name in ("tiny", "full", "tiny")]
    assert np.array_equal(found[0], found[2])
    assert not np.array_equal(found[0], found[1])


def test_random_weights_are_timed_with_it():
    figures = bench(TINY, random_parts(TINY), num_blocks=10)
    assert figures["settings"]["memory"]["decoder"] == "tiny"
    assert figures["parts"]["decode_block_ms"] > 0
    assert figures["end_to_end"]["num_frames"] == 117


@pytest.mark.slow
@pytest.mark.parametrize("decode_gpu", [False, True])
def test_ranks_give_what_one_device_gives(ask, tiny_checkpoint, monkeypatch, decode_gpu):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    spread = ask(1.2, layout="layers", num_gpus_dit=2, decode_gpu=decode_gpu)
    limits = Limits(silence_s=60.0, start_s=240.0, stall_s=120.0)
    source = RankedSource(spread.preset, tiny_checkpoint, limits=limits)
    try:
        found = video(source, spread)
    finally:
        source.close()
    alone = video(DiffusionPipeline(TINY, tiny_checkpoint), ask(1.2))
    assert found.shape == alone.shape
    assert np.abs(found.astype(int) - alone).max() <= 1
