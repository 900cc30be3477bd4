"""What the page sends back about faces and framing: valid for intake, or an error message; never a crash."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from avatar.errors import BadInput
from avatar.media.face_choice import FaceBox
from avatar.media.limits import InputLimits
from avatar.settings import Picture
from avatar.ui.portrait import framing_panel, point_editor
from avatar.ui.state.examples import ASSETS, Examples

PORTRAIT = ASSETS / "portraits" / "astronaut.jpg"


@pytest.fixture(scope="module")
def value() -> dict[str, Any]:
    """The panel's value after checking a portrait with one clearly detected face."""
    look = point_editor.look_at(PORTRAIT, Examples(), InputLimits())
    return point_editor.question(look, PORTRAIT, "en")["value"]


def second(value: dict[str, Any]) -> dict[str, Any]:
    """Add a face like the first, on the right."""
    return {**value["faces"][0], "box": {"left": 0.8, "top": 0.1, "right": 0.95, "bottom": 0.3}}


def test_one_face_shown_whole_needs_no_settings(value):
    assert framing_panel.picture_settings(value) == Picture()
    assert framing_panel.picture_settings(None) == Picture()
    assert framing_panel.shape_of(value, Picture()) == (512, 512)
    assert set(value["faces"][0]["cuts"]) == {"head", "shoulders", "half", "whole"}


def test_of_several_faces_the_chosen_one_is_set(value):
    two = {**value, "faces": [value["faces"][0], second(value)], "face": 1, "framing": "head"}
    assert framing_panel.picture_settings(two) == Picture(face="0.875000,0.200000", framing="head")
    placed_by_hand = {**two, "edited": True}
    assert framing_panel.picture_settings(placed_by_hand) == Picture(framing="head"), (
        "the points say which face"
    )


def test_the_shape_and_the_rectangles_follow_placed_points(value):
    moved = {name: (x + 0.3, y + 0.3) for name, (x, y) in value["points"].items()}
    edited = {**value, "points": moved, "edited": True, "framing": "head", "aspect": "9:16"}
    found, placed = (
        value["faces"][0]["cuts"]["head"]["1:1"],
        framing_panel.placed(edited)["cuts"]["head"]["1:1"],
    )
    assert placed[0] - found[0] == pytest.approx(0.3, abs=0.06)
    width, height = framing_panel.shape_of(edited, framing_panel.picture_settings(edited))
    assert width / height == pytest.approx(9 / 16, rel=0.01)


def test_looking_again_keeps_the_framing_of_that_portrait_alone(value):
    look = point_editor.look_at(PORTRAIT, Examples(), InputLimits())
    framed = {**value, "framing": "half", "aspect": "1:1", "extend": "#102030"}
    again = point_editor.question(look, PORTRAIT, "en", before=framed)["value"]
    assert (again["framing"], again["aspect"], again["extend"]) == ("half", "1:1", "#102030")
    other = point_editor.question(look, Path("other.png"), "en", before=framed)["value"]
    assert (other["framing"], other["aspect"]) == ("whole", "as-is")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_panel_has_all_its_words(language):
    words = framing_panel.panel_words(language)
    assert all(words.values())
    assert "{count}" in words["frame_faces"]


ODD: list[dict[str, Any]] = [
    {"framing": "legs"},
    {"framing": 3},
    {"aspect": ["1:1"]},
    {"extend": "url(x)"},
    {"size": [10**9, 5]},
    {"size": "big"},
    {"size": [512, 512, 512]},
    {"face": 7},
    {"face": -1},
    {"face": "0"},
    {"faces": "many"},
    {"faces": [None, None]},
    {"faces": [{"box": {"left": 1e300, "top": 0, "right": 1, "bottom": 1}}] * 2},
    {"faces": [{"box": {"left": float("nan"), "top": 0, "right": 1, "bottom": 1}}] * 2},
    {"faces": [{"box": {"left": "0", "top": 0, "right": 1, "bottom": 1}}] * 2},
    {"edited": True, "points": 5},
    {"edited": True, "points": {"chin": 5}},
    {"edited": True, "points": {"chin": [0.5, float("inf")]}},
    {"edited": True, "points": []},
]


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: str(odd)[:40])
@pytest.mark.parametrize("framing", ["whole", "head"])
def test_what_no_page_sends_is_refused_in_words_or_ignored(value, odd, framing):
    sent = {**value, "framing": framing, **odd}
    for look in (
        lambda: framing_panel.shape_of(sent, framing_panel.picture_settings(sent)),
        lambda: framing_panel.placed(sent),
    ):
        with suppress(BadInput):  # any other error fails the test
            look()


def test_a_box_is_what_was_found(value):
    box = framing_panel.box_of(value["faces"][0])
    assert isinstance(box, FaceBox)
    assert box.holds((0.44, 0.24))
