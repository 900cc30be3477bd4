"""The size that comes out is stated beforehand; what an engine cannot make is refused by name."""

from __future__ import annotations

import pytest

from avatar.errors import BadInput
from avatar.geometry import Size
from avatar.preset import load_preset
from avatar.sizes import check_size, size_from_larger, video_size


@pytest.mark.parametrize(
    ("engine", "portrait", "size", "expected"),
    [
        ("preview", (512, 512), "704*704", (704, 704)),
        ("preview", (960, 720), "704*704", (812, 608)),
        ("preview", (2048, 512), "1280*720", (1280, 320)),
        ("preview", (96, 96), "704*704", (192, 192)),
        ("diffusion", (720, 1280), "704*384", (384, 704)),
        ("diffusion", (512, 512), "1280*720", (512, 512)),
    ],
)
def test_what_comes_out_for_a_portrait(engine, portrait, size, expected):
    assert video_size(engine, *portrait, size) == Size(*expected)


@pytest.mark.parametrize(
    ("engine", "portrait", "size", "larger"),
    [
        ("preview", (96, 96), "704*704", Size(704, 704)),
        ("preview", (350, 350), "704*704", Size(704, 704)),
        ("preview", (352, 352), "704*704", None),
        ("preview", (640, 160), "1280*720", None),  # its longer side has the most that there is
        ("diffusion", (512, 512), "1280*720", Size(960, 960)),
        ("diffusion", (512, 512), "720*400", None),  # of a grid of 64 pixels that is the largest
        ("diffusion", (1024, 1024), "1280*720", None),
    ],
)
def test_what_would_come_out_for_a_larger_portrait(engine, portrait, size, larger):
    assert size_from_larger(engine, *portrait, size) == larger
    if larger is not None:
        assert video_size(engine, *portrait, size).area < larger.area


@pytest.mark.parametrize("size", ["4096*4096", "1281*720", "1280*1280", "99999*99999"])
def test_the_preview_refuses_a_size_that_it_cannot_make(size):
    with pytest.raises(BadInput, match=r"cannot make size .*1280\*720 is the largest") as caught:
        load_preset("cpu-preview").with_settings(size=size)
    assert size in caught.value.message
    check_size("diffusion", Size.parse(size))  # there it is a matter of memory, which the plan refuses


@pytest.mark.parametrize("engine", ["preview", "diffusion"])
def test_a_size_of_a_few_pixels_is_refused(engine):
    with pytest.raises(BadInput, match=r"8\*8"):
        check_size(engine, Size(8, 8))
    check_size(engine, Size(64, 64))


@pytest.mark.parametrize("size", ["1280*720", "720*1280", "960*960", "64*64"])
def test_sizes_at_the_preview_s_bounds_are_made(size):
    preset = load_preset("cpu-preview").with_settings(size=size)
    assert preset.generation.size == size


def test_a_shape_without_room_is_refused():
    with pytest.raises(BadInput, match="5000 x 40 pixels does not fit size 64"):
        video_size("diffusion", 5000, 40, "64*64")
