"""Sizes, tokens and audio indices against the public code's numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from avatar.errors import BadInput
from avatar.geometry import (
    FRAMEPACK,
    MOTION_LATENT_FRAMES,
    Geometry,
    Size,
    audio_indices,
    covering_size,
    num_blocks,
    output_size,
)

GOLDEN = Path(__file__).parent / "golden"


def test_output_sizes_are_the_public_ones():
    for case in json.loads((GOLDEN / "output_sizes.json").read_text()):
        found = output_size(case["portrait_width"], case["portrait_height"], case["size"])
        assert found == Size(case["width"], case["height"]), case


@pytest.mark.parametrize(
    ("portrait", "size", "covering"),
    [
        ((720, 1280), (384, 640), (384, 682)),
        ((1280, 720), (640, 384), (682, 384)),
        ((1826, 2151), (448, 512), (448, 527)),
        ((2126, 985), (704, 384), (828, 384)),
        ((816, 2817), (192, 512), (192, 662)),
        ((512, 512), (448, 448), (448, 448)),
        ((500, 1000), (448, 448), (448, 896)),
        ((1000, 500), (512, 512), (1024, 512)),
        ((3, 1), (64, 64), (192, 64)),
    ],
)
def test_a_covering_size_is_torchvisions(portrait, size, covering):
    """Its Resize gives the long side as int(short * long / short), these numbers."""
    assert covering_size(*portrait, Size(*size)) == Size(*covering)


def test_a_covering_size_follows_torchvision_where_it_covers():
    """Where the shorter side alone does not, torchvision would leave bars: there the longer one decides."""
    num_covered = 0
    for case in json.loads((GOLDEN / "output_sizes.json").read_text()):
        portrait = case["portrait_width"], case["portrait_height"]
        size, (short, long) = Size(case["width"], case["height"]), sorted(portrait)
        sides = min(size.width, size.height), int(min(size.width, size.height) * long / short)
        resized = sides if portrait[0] <= portrait[1] else sides[::-1]
        found = covering_size(*portrait, size)
        if resized[0] >= size.width and resized[1] >= size.height:
            num_covered += 1
            assert found == Size(*resized), case
        assert found.width >= size.width
        assert found.height >= size.height
        assert found.width == size.width or found.height == size.height
    assert num_covered > 80


@pytest.mark.parametrize("portrait", [(1, 1), (64, 64), (5000, 40), (31, 4000), (20_000, 20_000)])
@pytest.mark.parametrize("size", ["64*64", "384*256", "704*384", "1280*720"])
def test_any_output_size_is_one_that_the_model_makes(portrait, size):
    try:
        found = output_size(*portrait, size)
    except BadInput:
        assert max(portrait) / min(portrait) > Size.parse(size).area / 64**2
        return
    Geometry(found.width, found.height, 12)
    assert found.area <= Size.parse(size).area


def test_a_size_without_room_for_the_grid_is_refused():
    with pytest.raises(BadInput, match="too small"):
        output_size(512, 512, "64*32")


@pytest.mark.parametrize(("fps", "clip"), [(16, 48), (25, 32), (25, 48), (25, 80)])
def test_audio_buckets_are_the_public_ones(fps, clip):
    golden = load_file(GOLDEN / "audio_buckets.safetensors")
    features, expected = golden["features_30hz"], golden[f"bucket_fps{fps}_clip{clip}"]
    indices = torch.from_numpy(audio_indices(len(expected), fps))
    beyond = features.new_zeros(features.shape[0], int(indices.max()) + 1, features.shape[2])
    found = torch.cat([features, beyond], dim=1)[:, indices].transpose(0, 1)
    assert torch.equal(found, expected)


def test_audio_buckets_of_a_stretch_are_those_of_the_whole():
    assert (audio_indices(90_036, start=90_024) == audio_indices(90_036)[90_024:]).all()


def test_published_token_counts():
    geometry = Geometry.of(Size(704, 384), 48)
    assert (geometry.frame_tokens, geometry.block_tokens, geometry.condition_tokens) == (1056, 3168, 2640)
    assert (geometry.past_frames, geometry.second_clip_block) == (9, 4)
    assert geometry.block_shape == (16, 3, 48, 88)


def test_the_buckets_hold_all_motion_frames():
    assert sum(bucket.num_frames for bucket in FRAMEPACK) == MOTION_LATENT_FRAMES


@pytest.mark.parametrize(("frames", "blocks"), [(1, 1), (9, 1), (10, 2), (21, 2), (22, 3), (1500, 126)])
def test_blocks_cover_the_frames_and_the_lead_in(frames, blocks):
    assert num_blocks(frames) == blocks


@pytest.mark.parametrize(("width", "height", "window"), [(700, 384, 12), (0, 64, 12), (64, 64, 3)])
def test_impossible_geometry_is_refused(width, height, window):
    with pytest.raises(BadInput):
        Geometry(width, height, window)


def test_infer_frames_in_whole_latent_frames():
    with pytest.raises(BadInput, match="30"):
        Geometry.of(Size(704, 384), 30)
