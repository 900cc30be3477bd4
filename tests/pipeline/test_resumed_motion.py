"""What a part hands on: the last 73 frames and the anchor; the next one begins there."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from avatar.geometry import MOTION_FRAMES, Geometry, Size
from avatar.pipeline.denoiser import LocalDenoiser
from avatar.pipeline.flow_match_euler import Schedule
from avatar.pipeline.pipeline import DiffusionPipeline
from avatar.pipeline.resume import anchor_at, with_motion
from avatar.pipeline.rollout import rollout
from avatar.runtime.resume_state import ResumeState
from tests.fixtures.checkpoints import tiny_checkpoint  # noqa: F401
from tests.long.runs import SELF_TEST, Here, job
from tests.pipeline.streams import Noted, Stream

STREAM = Stream.load("basic")


def blocks(**more):
    geometry = Geometry.of(Size(STREAM.geometry.width, STREAM.geometry.height), 24)
    engine = Noted(LocalDenoiser(STREAM.transformer(), geometry, Schedule.flow_match(2)))
    made = list(rollout(STREAM.conditions, engine, num_blocks=6, seed=1, **more))
    return made, engine.events


def test_a_part_counts_positions_anew_and_noise_from_the_speechs():
    whole, seen = blocks()
    anchor = whole[0][:, :1]
    _, later = blocks(first_block=3, anchor=anchor, origin=3)
    assert torch.equal(later[0][1], anchor)
    assert [index for index, _ in later[1:]] == [0, 1, 2]  # and the anchor is not replaced
    noise = {index: noise for index, noise in seen if isinstance(index, int)}
    assert all(torch.equal(found, noise[3 + index]) for index, found in later[1:])


def test_an_independent_part_makes_an_anchor_of_its_own():
    made, seen = blocks(first_block=2, origin=2)
    assert torch.equal(seen[0][1], STREAM.conditions.reference)
    (refreshed,) = (value for kind, value in seen if kind == "refresh")
    assert torch.equal(refreshed, made[0][:, :1])
    assert [kind for kind, _ in seen[1:]] == [0, 1, "refresh", 2, 3]


@pytest.fixture(scope="module")
def parts(tmp_path_factory, tiny_checkpoint):  # noqa: F811
    """The frames that a source gave for each part of a film, and the requests."""
    folder = tmp_path_factory.mktemp("carry")
    given: list[np.ndarray] = []
    source = DiffusionPipeline(SELF_TEST, tiny_checkpoint)

    class Heard:
        label, close = source.label, source.close

        def frames(self, request, cancelled):
            frames = []
            for item in source.frames(request, cancelled):
                if isinstance(item, np.ndarray):
                    frames.append(item)
                yield item
            given.append(np.concatenate(frames))
            if request.part.leave:
                carries.append(request.part.leave.read_bytes())

    carries: list[bytes] = []
    one = job(folder, 3.6, preset=SELF_TEST, checkpoint_every=2)
    engine = Here(Heard())
    (folder / "w").mkdir()
    with one.opened(folder / "w") as opened:
        list(opened.engine([engine]).stream(opened.request))
    return given, carries, engine.asked, folder


def test_parts_are_whole_blocks_and_hand_on_their_last_frames(parts):
    given, carries, asked, folder = parts
    assert [len(frames) for frames in given] == [33, 57]
    assert [request.first_frame for request in asked] == [0, 33]
    assert (asked[0].part.carry, asked[-1].part.leave) == (None, None)
    (folder / "carry").write_bytes(carries[0])
    carry = load_file(folder / "carry")
    assert np.array_equal(carry["frames"].numpy(), given[0])
    assert np.array_equal(carry["picture"].numpy(), given[0][0])
    assert carry["anchor"].shape[1] == 1


def test_before_what_was_shown_the_portrait_stands_still(tmp_path):
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(tmp_path / "p.png")
    seen: list[torch.Tensor] = []
    vae = SimpleNamespace(encode=lambda video: (seen.append(video), video)[1])
    state, size = ResumeState(0, 100), Size(64, 64)
    given = replace(STREAM.conditions)
    assert with_motion(given, state, tmp_path / "p.png", size, size, vae) is given
    state.show(np.full((12, 64, 64, 3), 200, np.uint8))
    with_motion(given, state, tmp_path / "p.png", size, size, vae)
    (video,) = seen
    levels = ((video[0, 0, :, 0, 0] + 1) * 127.5).round().int().tolist()
    assert levels == [90] * (MOTION_FRAMES - 12) + [200] * 12


def test_the_anchor_is_the_first_picture_where_the_size_has_changed():
    seen: list[tuple[int, ...]] = []

    def encode_still(picture: torch.Tensor, num_frames: int) -> torch.Tensor:
        seen.append((*picture.shape, num_frames))
        return torch.arange(2.0)[None, None, :, None, None].expand(1, 16, 2, 4, 4)

    vae = SimpleNamespace(encode_still=encode_still)
    state = ResumeState(0, 100)
    assert anchor_at(state, Size(64, 64), vae) is None
    state.show(np.full((12, 64, 64, 3), 200, np.uint8))
    state.anchor = np.full((16, 1, 8, 8), 7, np.float32)
    assert torch.equal(anchor_at(state, Size(64, 64), vae), torch.full((16, 1, 8, 8), 7.0))
    assert torch.equal(anchor_at(state, Size(32, 32), vae), torch.ones(16, 1, 4, 4))  # of two latent frames
    assert seen == [(1, 3, 1, 32, 32, 5)]
