"""The block loop: determinism, any window, any order of work items, cancel, anchor refresh."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from avatar.errors import Cancelled
from avatar.geometry import Geometry, Size
from avatar.pipeline.denoiser import Denoiser, HeldAudio, LocalDenoiser, time_slice
from avatar.pipeline.flow_match_euler import Schedule
from avatar.pipeline.rollout import Arrival, block_distances, block_noise, make_block, rollout
from tests.pipeline.streams import Noted, Stream

STREAM = Stream.load("basic")


def denoiser(infer_frames: int = 24, num_steps: int = 2) -> LocalDenoiser:
    geometry = Geometry.of(Size(STREAM.geometry.width, STREAM.geometry.height), infer_frames)
    return LocalDenoiser(STREAM.transformer(), geometry, Schedule.flow_match(num_steps))


def run(engine: Denoiser, num_blocks: int = 5, seed: int = 1, stream: Stream = STREAM) -> Tensor:
    return torch.cat(list(rollout(stream.conditions, engine, num_blocks=num_blocks, seed=seed)), dim=1)


def test_same_seed_same_bits_also_from_a_used_denoiser():
    engine = denoiser()
    first = run(engine)
    assert torch.equal(run(engine), first)
    assert torch.equal(run(denoiser()), first)
    assert not torch.equal(run(engine, seed=2), first)


def test_a_shorter_run_is_the_beginning_of_a_longer_one():
    assert torch.equal(run(denoiser(), num_blocks=2), run(denoiser())[:, :6])


@pytest.mark.parametrize("infer_frames", [16, 20, 28, 32, 48, 64])
def test_any_window_over_several_clips(infer_frames):
    latents = run(denoiser(infer_frames, num_steps=1), num_blocks=3 * infer_frames // 12 + 1)
    frame_std = latents.std(dim=(0, 2, 3))
    assert latents.isfinite().all()
    assert float(frame_std.min()) > 0.5  # no frame of zeros
    assert float(frame_std.max() / frame_std.min()) < 1.5


@pytest.mark.parametrize(("num_blocks", "before"), [(5, 1), (1, 1), (0, 0)])
def test_what_is_done_meanwhile_is_done_once_a_block(num_blocks, before):
    engine, events = denoiser(), []
    submit, collect = engine.submit, engine.collect
    engine.submit = lambda block: (events.append("submit"), submit(block))
    engine.collect = lambda check: (events.append("collect"), collect(check))[1]
    blocks = list(
        rollout(
            STREAM.conditions,
            engine,
            num_blocks=num_blocks,
            seed=1,
            meanwhile=lambda: events.append("meanwhile"),
        )
    )
    assert len(blocks) == num_blocks
    assert events.count("meanwhile") == before
    assert events[:3] == (["submit", "meanwhile", "collect"] if before else [])


@pytest.mark.parametrize(
    ("is_finished", "expected"),
    [(False, ["submit", "submit", "collect", "collect"]), (True, ["submit", "collect", "submit", "collect"])],
)
def test_what_comes_first_is_done_first(is_finished, expected):
    """A block whose sound arrives while the oldest is in progress begins at once."""
    engine, events, looks = denoiser(), [], iter([False, False])
    engine.num_in_flight = 2
    engine.is_finished = lambda wait_s: is_finished
    submit, collect = engine.submit, engine.collect
    engine.submit = lambda block: (events.append("submit"), submit(block))
    engine.collect = lambda check: (events.append("collect"), collect(check))[1]
    arrival = Arrival(lambda block: block == 0 or next(looks, True))
    blocks = list(rollout(STREAM.conditions, engine, num_blocks=2, seed=1, arrival=arrival))
    assert events == expected
    assert torch.equal(torch.cat(blocks, dim=1), run(denoiser(), num_blocks=2))


@pytest.mark.parametrize("num_steps", range(1, 9))
def test_as_many_steps_as_asked(num_steps):
    engine, checks = denoiser(num_steps=num_steps), []
    list(
        rollout(STREAM.conditions, engine, num_blocks=2, seed=0, cancelled=lambda: bool(checks.append(None)))
    )
    assert len(checks) == 1 + 2 * num_steps


@pytest.mark.parametrize(("infer_frames", "expected"), [(16, 2), (24, 2), (32, 3), (48, 4)])
def test_the_first_generated_frame_is_the_second_clips_anchor(infer_frames, expected):
    engine = Noted(denoiser(infer_frames))
    latents = run(engine, num_blocks=6)
    (position,) = (i for i, (event, _) in enumerate(engine.events) if event == "refresh")
    assert engine.events[position + 1][0] == expected
    assert torch.equal(engine.events[position][1], latents[:, :1])
    assert list(engine.stack.caches[0].conditions) == [1]  # the old anchor's memory is free


def test_going_on_takes_up_the_same_noise_speech_and_anchor():
    whole = list(rollout(STREAM.conditions, denoiser(), num_blocks=5, seed=1))
    anchor = whole[0][:, :1]
    rest = list(rollout(STREAM.conditions, denoiser(), num_blocks=5, seed=1, first_block=3, anchor=anchor))
    assert len(rest) == 2
    engine = denoiser()
    engine.begin(dataclasses.replace(STREAM.conditions, reference=anchor))
    for index, found in zip((3, 4), rest, strict=True):
        engine.submit(make_block(STREAM.conditions, engine.geometry, 2, index, seed=1))
        assert torch.equal(engine.collect(), found)


@pytest.mark.parametrize("name", ["basic", "refresh_pose"])
def test_the_order_of_work_items_changes_no_bit(name):
    stream = Stream.load(name)
    expected = run(stream.denoiser(), num_blocks=8, stream=stream)
    assert torch.equal(run(stream.denoiser(diagonal=True), num_blocks=8, stream=stream), expected)


def test_cancel_takes_effect_before_the_next_step():
    answers = iter([False] * 6 + [True])
    blocks = rollout(
        STREAM.conditions, denoiser(num_steps=4), num_blocks=5, seed=0, cancelled=lambda: next(answers)
    )
    next(blocks)  # asked once at the start and four times on the way
    with pytest.raises(Cancelled):
        next(blocks)


def test_cancelled_before_the_start():
    blocks = rollout(STREAM.conditions, denoiser(), num_blocks=5, seed=0, cancelled=lambda: True)
    with pytest.raises(Cancelled):
        next(blocks)


def test_noise_is_standard_and_differs_by_block_and_seed():
    geometry = Geometry(256, 256, 12)
    noise = block_noise(geometry, 7, 0)
    assert torch.equal(noise, block_noise(geometry, 7, 0))
    assert float(noise.mean()) == pytest.approx(0, abs=0.02)
    assert float(noise.std()) == pytest.approx(1, abs=0.02)
    others = [block_noise(geometry, 7, 1), block_noise(geometry, 8, 0), block_noise(geometry, 2**62, 0)]
    assert all(float((noise * other).mean().abs()) < 0.02 for other in others)


def test_distances_cover_the_whole_range_evenly():
    drawn = [d for block in range(500) for d in block_distances(4, 0, block)]
    assert set(drawn) == set(range(4, 31))
    assert sum(drawn) / len(drawn) == pytest.approx(17, abs=0.6)
    assert block_distances(4, 0, 3) == block_distances(4, 0, 3) != block_distances(4, 1, 3)


def test_audio_and_pose_are_cut_by_block_and_end_in_zeros():
    conditions = Stream.load("refresh_pose").conditions
    features = conditions.audio.features[..., :20]
    conditions = dataclasses.replace(conditions, audio=HeldAudio(features))
    block = make_block(conditions, STREAM.geometry, 1, 1, seed=0)
    assert torch.equal(block.audio[..., :8], features[..., 12:])
    assert not block.audio[..., 8:].any()
    assert torch.equal(block.pose, conditions.pose[:, 3:6])
    assert not make_block(conditions, STREAM.geometry, 1, 9, seed=0).audio.any()


@pytest.mark.parametrize(
    ("start", "expected"), [(0, [0, 1, 2]), (3, [3, 4, 0]), (5, [0, 0, 0]), (9, [0, 0, 0])]
)
def test_time_slice(start, expected):
    assert time_slice(torch.arange(5), 0, start, 3).tolist() == expected
