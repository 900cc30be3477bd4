"""What a part hands on: the last 73 frames and the anchor; the next one begins there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from avatar.errors import BadInput
from avatar.geometry import MOTION_FRAMES, Geometry, Size
from avatar.pipeline.baton import Baton
from avatar.pipeline.denoise import LocalDenoiser
from avatar.pipeline.pipeline import DiffusionPipeline
from avatar.pipeline.rollout import rollout
from avatar.pipeline.schedule import Schedule
from tests.fixtures.checkpoints import tiny_checkpoint  # noqa: F401
from tests.long.runs import SELF_TEST, Here, job
from tests.pipeline.streams import Stream

STREAM = Stream.load("basic")


class Spied(LocalDenoiser):
    """Notes references and blocks."""

    def begin(self, conditions) -> None:
        self.seen = [("begin", conditions.reference)]
        super().begin(conditions)

    def refresh(self, reference) -> None:
        self.seen.append(("refresh", reference))
        super().refresh(reference)

    def submit(self, block) -> None:
        self.seen.append((block.index, block.noise))
        super().submit(block)


def blocks(**more):
    geometry = Geometry.of(Size(STREAM.geometry.width, STREAM.geometry.height), 24)
    engine = Spied(STREAM.transformer(), geometry, Schedule.flow_match(2))
    made = list(rollout(STREAM.conditions, engine, num_blocks=6, seed=1, **more))
    return made, engine.seen


def test_a_part_counts_positions_from_its_own_beginning_and_noise_from_the_speechs():
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
    folder = tmp_path_factory.mktemp("baton")
    given: list[np.ndarray] = []

    class Heard(DiffusionPipeline):
        def frames(self, request, cancelled):
            frames = []
            for item in super().frames(request, cancelled):
                if isinstance(item, np.ndarray):
                    frames.append(item)
                yield item
            given.append(np.concatenate(frames))
            if request.part.leave:
                carries.append(request.part.leave.read_bytes())

    carries: list[bytes] = []
    one = job(folder, 3.6, preset=SELF_TEST, checkpoint_every=2)
    engine = Here(Heard(SELF_TEST, tiny_checkpoint))
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
    assert carry["frames"].shape == (MOTION_FRAMES, *given[0].shape[1:])
    assert np.array_equal(carry["frames"][-33:].numpy(), given[0])  # before them the portrait stood still
    still = carry["frames"][:-33]
    assert torch.equal(still, still[:1].expand_as(still))
    assert carry["anchor"].shape[1] == 1


def test_what_cannot_be_taken_is_told(parts, tmp_path):
    _, carries, asked, _ = parts
    path = tmp_path / "carry"
    request = replace(asked[1], part=replace(asked[1].part, carry=path))
    for content, size, words in ((b"rust", Size(64, 64), "read"), (carries[0], Size(128, 64), "size")):
        path.write_bytes(content)
        with pytest.raises(BadInput, match=words):
            Baton.take(request, size)
