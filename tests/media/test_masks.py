"""Painted masks: read as pictures, fitted to the portrait, compared, and framed with it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from avatar.errors import BadInput
from avatar.media import masks
from avatar.media.face_choice import FaceBox
from avatar.media.framing import CropRectangle
from avatar.media.limits import InputLimits
from avatar.media.portrait import open_mask

LEFT_FACE, RIGHT_FACE = FaceBox(0.1, 0.2, 0.3, 0.6), FaceBox(0.7, 0.2, 0.9, 0.6)


def half(width: int = 200, height: int = 100, *, left: bool = True) -> np.ndarray:
    """A mask that is white in its left or its right half."""
    mask = np.zeros((height, width), np.uint8)
    mask[:, slice(None, width // 2) if left else slice(width // 2, None)] = 255
    return mask


@pytest.mark.parametrize("mode", ["L", "RGB", "1", "P", "I;16", "RGBA", "LA"])
def test_white_is_read_from_any_kind_of_picture(mode: str, tmp_path: Path) -> None:
    white = Image.fromarray(half())
    if mode == "I;16":
        picture = Image.fromarray(half().astype(np.uint16) * 257)
    elif mode in ("RGBA", "LA"):  # painted white on nothing
        picture = Image.new(mode[:-1], white.size, "white")
        picture.putalpha(white)
    else:
        picture = white.convert(mode)
    picture.save(tmp_path / "mask.png")
    assert np.array_equal(open_mask(tmp_path / "mask.png"), half())


def test_a_mask_is_bounded_and_checked_as_a_portrait_is(tmp_path: Path) -> None:
    Image.fromarray(half(3000, 1500)).save(tmp_path / "large.png")
    assert open_mask(tmp_path / "large.png").shape == (1024, 2048)
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes((tmp_path / "large.png").read_bytes()[:200])
    for name, words in (
        ("none.png", "The mask none.png does not exist"),
        ("text.png", "text.png is not a picture that can be read"),
        ("cut.png", "cut.png is damaged or cut short"),
    ):
        with pytest.raises(BadInput, match=words):
            open_mask(tmp_path / name)
    with pytest.raises(BadInput, match=r"large.png is too large"):
        open_mask(tmp_path / "large.png", limits=InputLimits(max_pixels=1000))


def test_a_mask_is_kept_in_the_portraits_shape() -> None:
    kept = masks.fitted(half(400, 200), 1600, 800, "m.png")
    assert kept.shape == (256, 512)
    assert np.array_equal(kept >= masks.WHITE, half(512, 256) > 0)
    assert masks.fitted(half(402, 200), 100, 50, "m.png").shape == (50, 100)
    words = r"m.png has another shape .*: 200×100 pixels, and the portrait 800×800"
    with pytest.raises(BadInput, match=words):
        masks.fitted(half(), 800, 800, "m.png")


@pytest.mark.parametrize("dots", [0, 4])
def test_an_empty_mask_is_refused(dots: int) -> None:
    mask = np.zeros((100, 200), np.uint8)
    mask[50, 50 : 50 + dots] = 255
    with pytest.raises(BadInput, match=r"The mask m.png is empty"):
        masks.fitted(mask, 200, 100, "m.png")


def test_masks_may_touch_and_cross_but_not_cover() -> None:
    left, right = half(), half(left=False)
    crossing = np.roll(left, 40, axis=1)
    masks.check_apart([("a", left), ("b", right), ("c", crossing)])
    within = masks.of_box((0.1, 0.1, 0.4, 0.9), 200, 100)
    for pair in ([("a", left), ("b", within)], [("b", within), ("a", left)]):
        with pytest.raises(BadInput, match="The mask b lies wholly within the mask a"):
            masks.check_apart(pair)
    with pytest.raises(BadInput, match=r"The mask a.png lies wholly within the mask a.png"):
        masks.check_apart([("a.png", left), ("a.png", left)])


def test_a_mask_chooses_the_face_within_it() -> None:
    faces = (LEFT_FACE, RIGHT_FACE)
    assert masks.face_within(half(), faces, "m.png") == 0
    assert masks.face_within(half(left=False), faces, "m.png") == 1
    with pytest.raises(BadInput, match=r"Faces 1 and 2 lie in the mask m.png"):
        masks.face_within(np.full((100, 200), 255, np.uint8), faces, "m.png")
    with pytest.raises(BadInput, match=r"No face lies in the mask m.png"):
        masks.face_within(masks.of_box((0.45, 0.0, 0.55, 1.0), 200, 100), faces, "m.png")
    assert masks.share_within(half(), FaceBox(0.4, -0.5, 0.6, 0.5)) == pytest.approx(0.5)
    assert masks.share_within(half(), FaceBox(1.1, 0.0, 1.2, 0.5)) == 0


def test_a_mask_is_framed_with_its_portrait() -> None:
    mask = masks.fitted(half(400, 200), 400, 200, "m.png")
    wide = CropRectangle(-100, -50, 600, 300)  # extended on every side
    with Image.open(io.BytesIO(masks.png_within(mask, wide, 400))) as image:
        seen = np.asarray(image)
    assert seen.shape == (300, 600)
    expected = np.zeros((300, 600), np.uint8)
    expected[50:250, 100:300] = 255
    assert np.array_equal(seen, expected)
    with Image.open(io.BytesIO(masks.png_within(mask, CropRectangle(100, 0, 200, 200), 400))) as image:
        assert np.array_equal(np.asarray(image), half(200, 200))
