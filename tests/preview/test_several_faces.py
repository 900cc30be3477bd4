"""All faces of a picture are found, from left to right, and the largest speaks unless another is chosen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pictures import bystander, portrait, small_astronaut
from PIL import Image

from avatar.errors import BadInput
from avatar.events import Notice
from avatar.media.face_choice import FoundFaces, chosen
from avatar.preset import load_preset
from avatar.preview.face_detection import Face, find_face, find_faces
from avatar.preview.face_finder import Finder, boxes
from avatar.preview.portrait_notices import portrait_notices
from avatar.preview.source import face_of
from avatar.request import Request


def request(**given: object) -> Request:
    paths = dict.fromkeys(("portrait", "speech", "work", "output"), Path("none"))
    names = {"portrait_name": "us.png", "speech_name": "s.wav", "num_frames": 10}
    return Request(**{**paths, "preset": load_preset("cpu-preview"), **names, **given})


def middle(face: Face) -> tuple[float, float]:
    left, top, right, bottom = face.box
    return (left + right) / 2, (top + bottom) / 2


@pytest.fixture(scope="module")
def three() -> np.ndarray:
    """Faces of 98, 49 and 25 px, each found best at another scale."""
    scene = np.full((900, 1600, 3), 90, np.uint8)
    for side, x, y in ((512, 700, 100), (256, 1300, 600), (128, 200, 700)):
        shrunk = Image.fromarray(portrait("astronaut")).resize((side, side), Image.Resampling.BOX)
        scene[y : y + side, x : x + side] = np.asarray(shrunk)
    return scene


def test_all_faces_are_found_from_left_to_right(three: np.ndarray) -> None:
    faces = find_faces(three)
    heights = [one.face.box[3] - one.face.box[1] for one in faces.found]
    assert [round(middle(one.face)[0], -2) for one in faces.found] == [300, 900, 1400]
    assert heights[1] > 1.7 * heights[2] > 3 * heights[0]
    assert faces.main == 1
    assert np.array_equal(find_face(three).face.landmarks, faces.found[1].face.landmarks)


@pytest.mark.parametrize("name", ["astronaut", "mara", "robot", "fox"])
def test_one_face_counts_once(name: str) -> None:
    assert len(find_faces(portrait(name)).found) == 1


def test_a_large_profile_goes_before_a_bystander() -> None:
    faces = find_faces(bystander())
    assert [one.verdict for one in faces.found] == ["weak", "face"]
    assert faces.main == 0
    assert middle(faces.found[1].face) == pytest.approx((443, 321), abs=6)
    assert middle(find_face(bystander()).face) == pytest.approx((227, 160), abs=15)


def test_cheek_to_cheek_are_two() -> None:
    scene = np.full((320, 480, 3), 90, np.uint8)
    scene[80:240, 80:240] = scene[80:240, 225:385] = small_astronaut(160)
    assert len(find_faces(scene).found) == 2


def test_the_engine_tells_how_many_and_which() -> None:
    face, notices = face_of(request(), bystander())
    assert middle(face)[0] < 256
    (told,) = [one for one in notices if one.code == "several_faces"]
    assert "2 faces in us.png: number 1 from the left" in told.text
    assert (told.level, told.values) == ("warning", {"count": 2, "number": 1, "name": "us.png"})
    assert not [one for one in face_of(request(), portrait("mara"))[1] if one.code == "several_faces"]


def test_the_chosen_face_is_moved() -> None:
    scene = bystander()
    found = boxes(find_faces(scene), scene)
    for number, x in ((1, 227), (2, 443)):
        box = found.boxes[chosen(found, str(number), "us.png")]
        face, notices = face_of(request(face=box.as_tuple()), scene)
        assert middle(face)[0] == pytest.approx(x, abs=15)
        assert "several_faces" not in [one.code for one in notices]
        with_head = face_of(request(face=box.as_tuple(), head_only=True), scene)[0]
        assert middle(with_head)[0] == pytest.approx(x, abs=15)


def test_a_chosen_face_that_is_gone_is_reported() -> None:
    with pytest.raises(BadInput, match=r"chosen in us.png cannot be made out"):
        face_of(request(face=(0.9, 0.0, 1.0, 0.1)), bystander())


def test_a_model_that_moves_everybody_says_so(tmp_path: Path) -> None:
    def told(pixels: np.ndarray, **given: object) -> list[Notice]:
        Image.fromarray(pixels).save(tmp_path / "us.png")
        preset = load_preset("80gb")
        return portrait_notices(request(preset=preset, portrait=tmp_path / "us.png", **given))

    assert "2 faces in us.png" in next(one.text for one in told(bystander()) if one.code == "everybody")
    assert "everybody" not in [one.code for one in told(portrait("mara"))]
    assert "everybody" not in [one.code for one in told(bystander(), face=(0.4, 0.2, 0.5, 0.4))]


def test_a_face_whose_points_are_placed_has_a_box() -> None:
    points = {
        "mouth_left": (0.4, 0.6),
        "mouth_right": (0.6, 0.6),
        "inner_lip_top": (0.5, 0.6),
        "inner_lip_bottom": (0.5, 0.6),
        "outer_lip_top": (0.5, 0.58),
        "outer_lip_bottom": (0.5, 0.63),
        "chin": (0.5, 0.75),
    }
    box = Finder().placed(points, 400, 400)
    assert box.bottom == pytest.approx(0.75, abs=0.02)
    assert box.middle[0] == pytest.approx(0.5, abs=0.01)
    assert box.top < 0.4
    assert box.holds((0.5, 0.6))


def test_no_face_is_no_face() -> None:
    assert Finder().faces(np.full((200, 200, 3), 127, np.uint8)) == FoundFaces()
