"""Where a run stands: kept while frames pass, written for who goes on, and read again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from avatar.errors import BadInput
from avatar.geometry import MOTION_FRAMES, Size
from avatar.preset import load_preset
from avatar.request import Part, Request
from avatar.runtime.resume_state import ResumeState

SIZE = Size(64, 64)


def request_of(folder: Path, num_frames: int, part: Part | None = None) -> Request:
    return Request(
        portrait=folder / "portrait.png",
        speech=folder / "speech.wav",
        work=folder,
        output=folder / "out.mp4",
        preset=load_preset("self-test"),
        num_frames=num_frames,
        portrait_name="portrait.png",
        speech_name="speech.wav",
        part=part,
    )


def show(state: ResumeState, num_frames: int, first: int = 0) -> None:
    """Frames of which each is filled with its number."""
    numbers = np.arange(first, first + num_frames, dtype=np.uint8)[:, None, None, None]
    if state.anchor is None:
        state.anchor = np.full((16, 1, 8, 8), first, np.float32)
    state.show(np.broadcast_to(numbers, (num_frames, 64, 64, 3)))


def test_a_run_of_which_nothing_was_shown_is_asked_for_as_it_was(tmp_path):
    request = request_of(tmp_path, 48)
    state = ResumeState.of(request)
    assert state.rest(request, tmp_path / "shown") is request
    assert (state.goes_on, state.is_whole, state.next_block, state.blocks_left) == (False, False, 0, 5)
    assert not (tmp_path / "shown").exists()


def test_the_rest_begins_behind_the_last_frame_shown(tmp_path):
    request, file = request_of(tmp_path, 48), tmp_path / "shown"
    state = ResumeState.of(request)
    show(state, 21, 1)
    state.num_rungs, state.num_full = 2, 1
    rest = state.rest(request, file)
    assert (rest.num_frames, rest.first_frame, rest.speech_frames) == (27, 21, 48)
    assert (rest.part.num_rungs, rest.part.num_full, rest.part.carry) == (2, 1, file)
    fresh = ResumeState.of(rest, SIZE)
    assert [frame[0, 0, 0] for frame in fresh.frames] == list(range(1, 22))
    assert (fresh.picture[0, 0, 0], fresh.anchor[0, 0, 0, 0]) == (1, 1)
    assert (fresh.next_frame, fresh.frames_left, fresh.next_block, fresh.blocks_left) == (21, 27, 2, 3)
    assert (fresh.num_rungs, fresh.num_full) == (2, 1)


def test_a_rung_taken_before_anything_was_shown_needs_no_file(tmp_path):
    request = request_of(tmp_path, 48)
    state = ResumeState.of(request)
    state.num_rungs = 1
    rest = state.rest(request, tmp_path / "shown")
    assert (rest.num_frames, rest.part.num_rungs, rest.part.carry) == (48, 1, None)
    assert not ResumeState.of(rest).goes_on


def test_a_part_goes_on_behind_what_the_part_before_left(tmp_path):
    before = ResumeState(33, 0)
    show(before, MOTION_FRAMES, 100)
    before.write(tmp_path / "carry")
    part = Part("run", 33, 200, carry=tmp_path / "carry", leave=tmp_path / "leave")
    request = request_of(tmp_path, 48, part)
    state = ResumeState.of(request, SIZE)
    assert state.rest(request, tmp_path / "shown") is request
    show(state, 12, 1)
    assert state.next_block == 4  # frame 45 of the speech
    rest = state.rest(request, tmp_path / "shown")
    assert (rest.part.run, rest.part.first_frame, rest.part.leave) == ("run", 45, tmp_path / "leave")
    fresh = ResumeState.of(rest, SIZE)
    shown = [int(frame[0, 0, 0]) for frame in fresh.frames]
    assert shown == [*range(112, 173), *range(1, 13)]
    assert (fresh.picture[0, 0, 0], fresh.anchor[0, 0, 0, 0]) == (100, 100)
    show(state, 36, 13)
    assert state.is_whole
    state.leave(request)  # in the place of ranks that were lost before they could
    last = ResumeState.of(request_of(tmp_path, 1, Part("run", 81, 200, carry=tmp_path / "leave")), SIZE)
    assert last.frames[-1][0, 0, 0] == 48


def test_nothing_is_left_where_nothing_is_wanted_or_was_shown(tmp_path):
    state = ResumeState.of(request := request_of(tmp_path, 48, Part("run", 0, 48, leave=tmp_path / "leave")))
    state.leave(request)
    assert not (tmp_path / "leave").exists()
    show(state, 12)
    state.leave(request_of(tmp_path, 48))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_used_is_reported(tmp_path):
    file = tmp_path / "carry"
    request = request_of(tmp_path, 48, Part("run", 33, 200, carry=file))
    with pytest.raises(BadInput, match="cannot be read"):
        ResumeState.of(request)
    file.write_bytes(b"rust")
    with pytest.raises(BadInput, match="cannot be read"):
        ResumeState.of(request)
    state = ResumeState(33, 0)
    show(state, 3)
    state.write(file)
    assert len(ResumeState.of(request).frames) == 3
    with pytest.raises(BadInput, match="another size"):
        ResumeState.of(request, Size(128, 64))
