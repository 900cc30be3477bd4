"""Which face a user means: by number, by a point, or by saying nothing; what there is not is refused."""

from __future__ import annotations

import pytest

from avatar.errors import BadInput
from avatar.media.face_choice import FaceBox, FoundFaces, chosen, face_words, several_faces
from avatar.media.framing import parse_picture

TWO = FoundFaces((FaceBox(0.1, 0.2, 0.3, 0.5), FaceBox(0.6, 0.1, 0.9, 0.6)), main=1)
OVERLAPPING = FoundFaces((FaceBox(0.1, 0.1, 0.5, 0.5), FaceBox(0.3, 0.1, 0.7, 0.5)))


@pytest.mark.parametrize(
    ("face", "index"), [("", 1), ("1", 0), ("2", 1), ("0.2,0.3", 0), ("0.65, 0.5", 1), ("0.9,0.6", 1)]
)
def test_a_face_by_number_or_point(face: str, index: int) -> None:
    assert chosen(TWO, parse_picture(face=face).face, "us.png") == index


def test_the_nearest_of_overlapping_faces_is_meant() -> None:
    assert [chosen(OVERLAPPING, f"{x},0.3", "us.png") for x in (0.35, 0.45)] == [0, 1]


@pytest.mark.parametrize(
    ("face", "words"),
    [
        ("3", "no face 3 in us.png: 2 faces"),
        ("999", "no face 999"),
        ("0.5,0.9", r"no face at 0.5,0.9 in us.png.*1: 0.20,0.35; 2: 0.75,0.35"),
    ],
)
def test_a_face_that_is_not_there_is_refused(face: str, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        chosen(TWO, face, "us.png")


def test_without_any_face_there_is_none_to_choose() -> None:
    with pytest.raises(BadInput, match=r"No face was found in us.png"):
        chosen(FoundFaces(), "1", "us.png")


@pytest.mark.parametrize(
    "face", ["0", "-1", "x", "1.5", "1,2", "0.5", "0.5,", "1e9,0", "nan,0", "0.1,0.1,0.1", "1000"]
)
def test_what_is_no_face_is_refused_in_words(face: str) -> None:
    with pytest.raises(BadInput, match=r"face is .*must be a number counted from the left, or a point"):
        parse_picture(face=face)


@pytest.mark.parametrize(
    ("value", "words"),
    [(2, "2"), ([0.25, 1], "0.250000,1.000000"), ("3", "3"), (None, None), (True, True), ([1], [1])],
)
def test_a_face_as_json_has_it(value: object, words: object) -> None:
    assert face_words(value) == words


def test_one_face_needs_no_words() -> None:
    assert several_faces(1, 0, False, "us.png") == []
    (notice,) = several_faces(3, 1, True, "us.png")
    assert (notice.level, notice.text) == (
        "info",
        "Of 3 faces in us.png, number 2 from the left speaks, as chosen.",
    )
