"""A portrait is cut about its face and extended to a shape; what was placed on it moves along."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from media_samples import PRESET_SETTINGS, picture, save, tone, write_wav
from PIL import Image

from avatar.errors import BadInput
from avatar.events import Notice
from avatar.live.portrait_intake import open_live_request
from avatar.media.face_choice import FaceBox, FoundFaces
from avatar.media.framing import SHAPES, cut_of, framed, parse_picture
from avatar.media.intake import open_request
from avatar.preset import Preset
from avatar.settings import Aspect, Framing, Picture

FACE = FaceBox(0.45, 0.2, 0.55, 0.35)
POINTS = {"chin": (0.5, 0.35), "mouth_left": (0.47, 0.3)}


class Finder:
    """Finds what it was made with; a placed face is a box about its points."""

    def __init__(self, *boxes: FaceBox, main: int = 0) -> None:
        self.found = FoundFaces(boxes, main)

    def faces(self, pixels: np.ndarray) -> FoundFaces:
        return self.found

    def placed(self, points: Mapping[str, tuple[float, float]], width: int, height: int) -> FaceBox:
        x, y = points["chin"]
        return FaceBox(x - 0.05, y - 0.15, x + 0.05, y)

    def cut_off(self, pixels: np.ndarray, points: object, box: FaceBox | None, name: str) -> list[Notice]:
        return [Notice("chin_cut_off", name)] if self.found.boxes and self.found.boxes[0].bottom > 1 else []


def marked(width: int, height: int, *places: tuple[float, float]) -> np.ndarray:
    """A grey picture with a red spot of 5 px at each place."""
    pixels = np.full((height, width, 3), 90, np.uint8)
    for x, y in places:
        row, column = round(y * height), round(x * width)
        pixels[row - 2 : row + 3, column - 2 : column + 3] = (255, 0, 0)
    return pixels


def spot(pixels: np.ndarray) -> tuple[float, float]:
    """The middle of what is red, as fractions."""
    rows, columns = np.nonzero((pixels[..., 0] > 170) & (pixels[..., 1] < 90))
    return (columns.mean() + 0.5) / pixels.shape[1], (rows.mean() + 0.5) / pixels.shape[0]


@pytest.mark.parametrize("framing", get_args(Framing))
@pytest.mark.parametrize("size", [(1600, 900), (900, 1600), (1000, 1000)], ids=str)
def test_every_framing_has_the_shape_that_is_asked_for(framing: Framing, size: tuple[int, int]) -> None:
    for aspect in get_args(Aspect):
        cut = cut_of(*size, Picture(framing=framing, aspect=aspect), FACE)
        shape = SHAPES.get(aspect, size[0] / size[1])
        assert cut.width / cut.height == pytest.approx(shape, rel=0.01)
        holds = cut.left <= FACE.left * size[0] and cut.top <= FACE.top * size[1]
        assert holds
        assert cut.left + cut.width >= FACE.right * size[0]
        assert cut.top + cut.height >= FACE.bottom * size[1]


def test_narrower_framings_show_less() -> None:
    areas = [
        cut_of(1600, 1600, Picture(framing=framing, aspect="1:1"), FACE).width
        for framing in ("head", "shoulders", "half", "whole")
    ]
    assert areas == sorted(areas)
    assert len(set(areas)) == 4


def test_a_crop_in_its_own_shape_never_leaves_the_picture() -> None:
    faces = [
        FaceBox(x, y, x + s, y + s) for x, y, s in product((-0.1, 0.0, 0.5, 0.9), (0.0, 0.7), (0.05, 0.3))
    ]
    for framing, face in product(("head", "shoulders", "half", "whole"), faces):
        cut = cut_of(640, 360, Picture(framing=framing), face)
        assert cut.left >= 0 <= cut.top
        assert cut.left + cut.width <= 641
        assert cut.top + cut.height <= 361


def test_the_whole_picture_is_left_as_it_is() -> None:
    pixels = picture()
    out = framed(pixels, Picture(), "me.png", points=POINTS)
    assert out.pixels is pixels
    assert (out.points, out.face, out.notices) == (POINTS, None, ())


@pytest.mark.parametrize(
    ("aspect", "size"), [("16:9", (711, 400)), ("1:1", (400, 400)), ("9:16", (300, 533))]
)
def test_a_picture_is_extended_not_stretched(aspect: Aspect, size: tuple[int, int]) -> None:
    pixels = picture(300, 400)
    out = framed(pixels, Picture(aspect=aspect, extend="#2040a0"), "me.png").pixels
    assert out.shape == (size[1], size[0], 3)
    top, left = (size[1] - 400) // 2, (size[0] - 300) // 2
    inside = [out[y : y + 400, x : x + 300] for y in (top, top + 1) for x in (left, left + 1)]
    assert any(np.array_equal(one, pixels) for one in inside if one.shape == pixels.shape)
    assert tuple(out[0, 0]) == tuple(out[-1, -1]) == (0x20, 0x40, 0xA0)


def test_blurred_edges_go_on_from_the_picture() -> None:
    pixels = np.zeros((200, 200, 3), np.uint8)
    pixels[:, :100], pixels[:, 100:] = (200, 30, 30), (30, 30, 200)
    pixels[::2] //= 2  # stripes, of which nothing may be seen beside the picture
    out = framed(pixels, Picture(aspect="16:9"), "me.png").pixels.astype(int)
    left, right = out[:, :60], out[:, -60:]
    assert np.abs(left.mean((0, 1)) - (150, 22, 22)).max() < 12
    assert np.abs(right.mean((0, 1)) - (22, 22, 150)).max() < 12
    assert np.abs(np.diff(left[20:-20], axis=0)).max() <= 6


@pytest.mark.parametrize("framing", ["head", "shoulders", "half", "whole"])
@pytest.mark.parametrize("aspect", get_args(Aspect))
def test_placed_points_follow_the_crop(framing: Framing, aspect: Aspect) -> None:
    for place in ((0.5, 0.3), (0.1, 0.3)):
        pixels = marked(900, 700, place)
        picture_settings = Picture(framing=framing, aspect=aspect, extend="#000000")
        out = framed(pixels, picture_settings, "me.png", points={"chin": place}, finder=Finder())
        assert out.points["chin"] == pytest.approx(spot(out.pixels), abs=0.01)
        assert out.face is None


def test_the_chosen_face_follows_the_crop() -> None:
    faces = (FaceBox(0.1, 0.3, 0.2, 0.5), FaceBox(0.6, 0.2, 0.7, 0.4))
    pixels = marked(900, 700, faces[1].middle)
    out = framed(pixels, Picture(face="2", framing="shoulders"), "me.png", finder=Finder(*faces))
    left, top, right, bottom = out.face
    assert ((left + right) / 2, (top + bottom) / 2) == pytest.approx(spot(out.pixels), abs=0.01)
    assert [one.code for one in out.notices] == ["face_chosen"]


def test_the_main_face_is_cropped_to_and_named() -> None:
    faces = Finder(FaceBox(0.1, 0.3, 0.2, 0.5), FaceBox(0.6, 0.2, 0.7, 0.4), main=1)
    out = framed(marked(900, 700, (0.65, 0.3)), Picture(framing="head"), "me.png", finder=faces)
    assert spot(out.pixels)[0] == pytest.approx(0.5, abs=0.02)
    assert [one.code for one in out.notices] == ["several_faces"]


def test_an_eyes_size_keeps_its_pixels() -> None:
    points = {"chin": (0.5, 0.5), "eye_size": (0.1, 0.02)}
    out = framed(marked(900, 700), Picture(aspect="16:9"), "me.png", points=points)
    height, width = out.pixels.shape[:2]
    assert (width, height) == (1244, 700)
    assert (out.points["eye_size"][0] * width, out.points["eye_size"][1] * height) == pytest.approx(
        (90, 14), rel=0.02
    )


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"framing": "legs"}, r"framing is 'legs'.*head, shoulders, half, whole"),
        ({"aspect": "4:3"}, r"aspect is '4:3'.*9:16, 1:1, 16:9, as-is"),
        ({"extend": "red"}, r"extend is 'red'.*blur, or a colour"),
        ({"extend": "#12345"}, "extend is"),
        ({"framing": 3}, "framing is 3"),
    ],
)
def test_other_framings_are_refused_in_words(given: dict[str, object], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        parse_picture(**given)


def test_a_crop_needs_a_face() -> None:
    with pytest.raises(BadInput, match=r"No face was found in me\.png"):
        framed(picture(), Picture(framing="head"), "me.png", finder=Finder())


def test_points_outside_of_the_crop_are_refused() -> None:
    points = {"chin": (0.5, 0.5), "mouth_left": (0.02, 0.95)}
    with pytest.raises(BadInput, match="'mouth_left' lies outside the crop"):
        framed(marked(900, 700), Picture(framing="head"), "me.png", points=points, finder=Finder())


def test_a_small_crop_is_enlarged_and_reported() -> None:
    finder = Finder(FaceBox(0.5, 0.5, 0.53, 0.54))
    out = framed(picture(1000, 1000), Picture(framing="head", aspect="1:1"), "me.png", finder=finder)
    assert out.pixels.shape == (256, 256, 3)
    (notice,) = out.notices
    assert (notice.code, notice.values["width"]) == ("small_crop", 84)


def test_a_chin_is_still_cut_off_where_blur_goes_on() -> None:
    finder = Finder(FaceBox(0.3, 0.4, 0.7, 1.1))
    notices = framed(picture(900, 700), Picture(aspect="9:16"), "me.png", finder=finder).notices
    assert [one.code for one in notices] == ["chin_cut_off"]
    assert framed(picture(900, 700), Picture(), "me.png", finder=finder).notices == ()


def test_what_is_extended_stays_within_the_working_size() -> None:
    out = framed(picture(1152, 2048), Picture(aspect="16:9"), "me.png").pixels
    assert out.shape == (1152, 2048, 3)


@pytest.mark.parametrize("engine", ["preview", "diffusion"])
def test_engines_get_the_portrait_framed(engine: str, tmp_path: Path) -> None:
    picture_settings, finder = Picture(framing="head", aspect="1:1"), Finder(FACE)
    portrait = save(tmp_path / "me.png", marked(900, 700, (0.5, 0.275)))
    preset = Preset(**PRESET_SETTINGS | {"engine": engine})
    request = open_request(
        portrait,
        write_wav(tmp_path / "s.wav", tone(1), 16_000),
        preset,
        output=tmp_path / "o.mp4",
        work=tmp_path / "work",
        picture_settings=picture_settings,
        finder=finder,
    )
    live = open_live_request(portrait, preset, tmp_path, picture_settings=picture_settings, finder=finder)
    for one in (request, live):
        with Image.open(one.portrait) as shown:
            assert shown.width == shown.height < 300
            assert spot(np.asarray(shown)) == pytest.approx((0.5, 0.5), abs=0.1)
        assert one.face[0] > 0.2
