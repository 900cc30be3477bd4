"""Phoneme symbols and times to viseme labels."""

import numpy as np
import pytest

from avatar.preview.visemes import VISEMES
from training.phonemes import (
    ARPABET,
    COPY_NEXT,
    DIPHTHONGS,
    IPA,
    PhonemeSegment,
    frame_labels,
    of_ipa,
    spread,
)


def named(labels: np.ndarray) -> list[str]:
    return [VISEMES[label] for label in labels]


def test_every_symbol_has_a_viseme() -> None:
    allowed = {*VISEMES, COPY_NEXT}
    assert set(IPA.values()) <= allowed
    assert {viseme for visemes in ARPABET.values() for viseme in visemes} <= allowed
    assert {viseme for pair in DIPHTHONGS.values() for viseme in pair} <= allowed
    assert set(IPA.values()) | {"sil"} >= set(VISEMES)


@pytest.mark.parametrize(
    ("symbols", "expected"),
    [
        ("m", ["PP"]),
        ("ˈaː", ["aa"]),
        ("aɪ", ["aa", "ih"]),
        ("tʃ", ["CH"]),
        ("ts", ["SS"]),
        ("h", [COPY_NEXT]),
        ("ˌ", []),
        ("", []),
    ],
)
def test_visemes_of_ipa(symbols: str, expected: list[str]) -> None:
    assert of_ipa(symbols) == expected


def test_a_phoneme_shares_its_time_among_its_visemes() -> None:
    assert spread(1.0, 1.2, []) == [PhonemeSegment(1.0, 1.2, "sil")]
    first, second = spread(1.0, 1.2, ["aa", "ih"])
    assert first.end_s == second.start_s == pytest.approx(1.11)
    thirds = spread(0.0, 0.3, ["DD", "RR", "aa"])
    assert [segment.end_s for segment in thirds] == pytest.approx([0.1, 0.2, 0.3])


def test_labels_follow_the_segments_and_are_silent_elsewhere() -> None:
    labels = frame_labels([PhonemeSegment(0.02, 0.05, "PP"), PhonemeSegment(0.05, 0.06, "aa")], 8)
    assert named(labels) == ["sil", "sil", "PP", "PP", "PP", "aa", "sil", "sil"]


def test_h_takes_the_shape_of_the_vowel_after_it() -> None:
    segments = [
        PhonemeSegment(0.0, 0.02, COPY_NEXT),
        PhonemeSegment(0.02, 0.03, "ou"),
        PhonemeSegment(0.03, 0.04, COPY_NEXT),
    ]
    assert named(frame_labels(segments, 4)) == ["ou", "ou", "ou", "E"]


def test_a_shift_moves_all_labels_and_drops_what_leaves_the_start() -> None:
    segments = [PhonemeSegment(0.0, 0.03, "SS"), PhonemeSegment(0.03, 0.05, "aa")]
    assert named(frame_labels(segments, 5, shift_s=-0.02)) == ["SS", "aa", "aa", "sil", "sil"]
    assert named(frame_labels(segments, 5, shift_s=0.01)) == ["sil", "SS", "SS", "SS", "aa"]
