"""Several faces in one film: each is tracked by itself, and its mouth compared with its own voice alone."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from avatar.geometry import FPS
from avatar.measures.face_track import FaceTrack, follow_several
from avatar.measures.measure import EACH, SeenSpeaker, judge_several
from avatar.preview.face_detection import find_face
from avatar.request import Box
from tests.measures import films


def _boxes() -> tuple[Box, Box]:
    """The face in the photograph that stands twice side by side, as fractions of both."""
    image, face = films.renderer().image, find_face(films.renderer().image).face
    assert face is not None
    (height, width), (left, top, right, bottom) = image.shape[:2], face.box
    across = left / (2 * width), right / (2 * width)
    first = across[0], top / height, across[1], bottom / height
    return first, (first[0] + 0.5, first[1], first[2] + 0.5, first[3])


LEFT, RIGHT = _boxes()


@cache
def tracks() -> tuple[FaceTrack, ...]:
    """The film that speaks, and beside it what other sounds make of the same photograph."""
    frames, sound = films.read_aloud()
    both = [np.concatenate(pair, axis=1) for pair in zip(films.spoken(), frames, strict=False)]
    assert len(sound) / 16_000 > len(both) / FPS - 1
    return follow_several(((index / FPS, frame) for index, frame in enumerate(both)), [LEFT, RIGHT])


def test_each_face_is_in_time_with_its_own_voice() -> None:
    first, second = films.heard(films.speech()), films.heard(films.read_aloud()[1])
    speakers = [SeenSpeaker("anna", LEFT, first), SeenSpeaker("ben", RIGHT, second)]
    found = judge_several(tracks(), speakers)
    assert [one.name for one in found.speakers] == ["anna", "ben"]
    for one in found.speakers:
        assert one.face_share == 1
        assert one.lip_sync.offset_ms == pytest.approx(0, abs=30)
        assert one.lip_sync.confidence > 0.4
    assert found.lip_sync.why == EACH
    plain = found.as_dict()
    assert plain["speakers"][1]["lip_sync"]["closures"] == found.speakers[1].lip_sync.closures > 0
    assert plain["speakers"][0]["likeness"]["drifting"] == []


def test_a_voice_given_to_the_other_face_is_not_in_time() -> None:
    first, second = films.heard(films.speech()), films.heard(films.read_aloud()[1])
    swapped = [SeenSpeaker("anna", LEFT, second), SeenSpeaker("ben", RIGHT, first)]
    right = [SeenSpeaker("anna", LEFT, first), SeenSpeaker("ben", RIGHT, second)]
    wrong, own = (judge_several(tracks(), speakers) for speakers in (swapped, right))
    for one, other in zip(wrong.speakers, own.speakers, strict=True):
        assert one.lip_sync.confidence < other.lip_sync.confidence / 2


def test_who_listens_is_told_and_still_measured() -> None:
    speakers = [SeenSpeaker("anna", LEFT, films.heard(films.speech())), SeenSpeaker("2", RIGHT, "it listens")]
    found = judge_several(tracks(), speakers)
    assert (found.speakers[1].lip_sync.offset_ms, found.speakers[1].lip_sync.why) == (None, "it listens")
    assert found.speakers[1].naturalness.yaw is not None


def test_a_face_that_is_not_there_has_no_measures() -> None:
    image = np.concatenate([films.renderer().image, np.full_like(films.renderer().image, 90)], axis=1)
    frames = [(index / FPS, image) for index in range(30)]
    seen, gone = follow_several(frames, [LEFT, RIGHT], image)
    assert (seen.seen_share, gone.seen_share) == (1, 0)
    assert (seen.against_portrait, gone.against_portrait) == (True, False)
