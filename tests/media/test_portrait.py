"""Odd but good pictures come out right to the pixel."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from media_samples import picture, save
from PIL import Image, ImageCms

from avatar.errors import BadInput
from avatar.media.limits import InputLimits
from avatar.media.portrait import (
    _FORMATS,
    BACKDROP,
    PORTRAIT_SUFFIXES,
    WORKING_SIDE_PX,
    open_portrait,
    read_portrait,
)

TRUTH = picture()
GREY = np.repeat(TRUTH[..., :1], 3, axis=2)
ALPHA = np.tile(np.linspace(0, 255, 160).round().astype(np.uint8), (120, 1))
COMPOSITED = (TRUTH * (ALPHA / 255)[..., None] + np.array(BACKDROP) * (1 - ALPHA / 255)[..., None]).round()


def rgba(path: Path) -> None:
    Image.fromarray(np.dstack([TRUTH, ALPHA])).save(path, lossless=True)


def grey_alpha(path: Path) -> None:
    Image.merge("LA", [Image.fromarray(TRUTH[..., 0]), Image.fromarray(ALPHA)]).save(path)


def sixteen_bit(path: Path) -> None:
    Image.fromarray(TRUTH[..., 0].astype(np.uint16) * 257 + 60).save(path)


def palette(path: Path) -> None:
    Image.fromarray(TRUTH // 64 * 64).quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
        path
    )


def palette_with_hole(path: Path) -> None:
    indices = Image.fromarray(np.arange(160 * 120, dtype=np.uint32).reshape(120, 160).astype(np.uint8) % 2)
    indices.putpalette([255, 0, 0, 10, 200, 30])
    indices.save(path, transparency=0)


def cmyk(path: Path) -> None:
    Image.fromarray(TRUTH).convert("CMYK").save(path, quality=98, subsampling=0)


def heic(path: Path) -> None:
    pillow_heif.from_pillow(Image.fromarray(TRUTH)).save(path, quality=95, chroma=444)


def several_in_one(path: Path) -> None:
    Image.fromarray(TRUTH).save(
        path, "MPO", save_all=True, append_images=[Image.fromarray(255 - TRUTH)], quality=98, subsampling=0
    )


HOLED = np.where((np.arange(160 * 120).reshape(120, 160) % 2 == 0)[..., None], BACKDROP, (10, 200, 30))

ODD = [
    ("plain.png", lambda p: save(p), TRUTH, 0),
    ("plain.jpg", lambda p: save(p, quality=98, subsampling=0), TRUTH, 3),
    ("progressive.jpeg", lambda p: save(p, quality=98, subsampling=0, progressive=True), TRUTH, 3),
    ("plain.webp", lambda p: save(p, lossless=True), TRUTH, 0),
    ("plain.avif", lambda p: save(p, quality=95, subsampling="4:4:4"), TRUTH, 6),
    ("plain.heic", heic, TRUTH, 6),
    ("wrong-suffix.png", lambda p: save(p, format="JPEG", quality=98, subsampling=0), TRUTH, 3),
    ("several.jpg", several_in_one, TRUTH, 3),
    ("grey.png", lambda p: save(p, TRUTH[..., 0]), GREY, 0),
    ("grey.jpg", lambda p: save(p, TRUTH[..., 0], quality=98), GREY, 2),
    ("grey16.png", sixteen_bit, GREY, 0),
    ("black-and-white.png", lambda p: Image.fromarray(TRUTH[..., 0] > 99).save(p), (GREY > 99) * 255, 0),
    ("palette.png", palette, TRUTH // 64 * 64, 0),
    ("hole.png", palette_with_hole, HOLED, 0),
    ("cmyk.jpg", cmyk, TRUTH, 4),
    ("alpha.png", rgba, COMPOSITED, 1),
    ("alpha.webp", rgba, COMPOSITED, 3),
    ("grey-alpha.png", grey_alpha, (GREY * (ALPHA / 255)[..., None] + 224 * (1 - ALPHA / 255)[..., None]), 1),
]


@pytest.mark.parametrize(("name", "make", "truth", "tolerance"), ODD, ids=[row[0] for row in ODD])
def test_odd_pictures_come_out_right(
    name: str, make: Callable[[Path], object], truth: np.ndarray, tolerance: int, tmp_path: Path
) -> None:
    make(tmp_path / name)
    pixels = read_portrait(tmp_path / name)
    assert pixels.dtype == np.uint8
    assert pixels.shape == TRUTH.shape
    assert np.abs(pixels.astype(int) - truth).max() <= tolerance


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".avif", ".heic"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(orientation: int, suffix: str, tmp_path: Path) -> None:
    turns: dict[
        int, Callable[[np.ndarray], np.ndarray]
    ] = {  # what a camera did to the upright picture, by EXIF
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned{suffix}"
    image = Image.fromarray(np.ascontiguousarray(turns[orientation](TRUTH)))
    pillow_heif.register_heif_opener()  # writes the turn into the container as well, as phones do
    image.save(path, exif=exif.tobytes(), quality=98)
    pixels = read_portrait(path)
    assert pixels.shape == TRUTH.shape
    assert np.abs(pixels.astype(int) - TRUTH).mean() < 3


def test_pictures_of_sixteen_bits_are_turned_too(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(TRUTH[::-1, ::-1, 0].astype(np.uint16) * 257).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_portrait(tmp_path / "turned.png"), GREY)


def test_embedded_profiles_are_obeyed(tmp_path: Path) -> None:
    linear = ImageCms.ImageCmsProfile(io.BytesIO(linear_profile()))
    save(tmp_path / "linear.png", icc_profile=linear.tobytes())
    pixels = read_portrait(tmp_path / "linear.png").astype(float)
    light = TRUTH / 255
    srgb = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055) * 255
    assert np.abs(pixels - srgb).max() <= 3
    assert np.abs(pixels - TRUTH).mean() > 20, "the profile changes the picture a lot"


def linear_profile() -> bytes:
    """sRGB's profile with its tone curves replaced by straight ones."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(profile[128:132], "big")
    tags = {bytes(profile[132 + 12 * n : 136 + 12 * n]): 132 + 12 * n for n in range(count)}
    for tag in (b"rTRC", b"gTRC", b"bTRC"):
        at, size = (int.from_bytes(profile[tags[tag] + n : tags[tag] + n + 4], "big") for n in (4, 8))
        profile[at : at + size] = (b"curv" + bytes(8)).ljust(size, b"\0")
    at = int.from_bytes(profile[tags[b"desc"] + 4 : tags[b"desc"] + 8], "big")
    size = int.from_bytes(profile[tags[b"desc"] + 8 : tags[b"desc"] + 12], "big")
    profile[at : at + size] = (
        bytes(profile[at : at + size]).replace(b"\0s\0R\0G\0B", b"\0l\0i\0n\0e").replace(b"sRGB", b"line")
    )
    return bytes(profile)


def test_a_broken_profile_is_reported(tmp_path: Path) -> None:
    save(tmp_path / "odd.png", icc_profile=b"no profile" * 20)
    portrait = open_portrait(tmp_path / "odd.png")
    assert np.array_equal(portrait.pixels, TRUTH)
    assert [note for note in portrait.notices if "odd.png" in note.text and "colour profile" in note.text]


def test_filled_transparency_is_reported(tmp_path: Path) -> None:
    rgba(tmp_path / "cut-out.png")
    assert "light grey" in open_portrait(tmp_path / "cut-out.png").notices[0].text
    Image.fromarray(np.dstack([TRUTH, np.full_like(ALPHA, 255)])).save(tmp_path / "opaque.png")
    opaque = open_portrait(tmp_path / "opaque.png")
    assert opaque.notices == ()
    assert np.array_equal(opaque.pixels, TRUTH)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_large_pictures_are_scaled_to_the_working_size(suffix: str, tmp_path: Path) -> None:
    save(tmp_path / f"large{suffix}", picture(3200, 2400), compress_level=1)
    pixels = read_portrait(tmp_path / f"large{suffix}")
    assert pixels.shape == (WORKING_SIDE_PX * 3 // 4, WORKING_SIDE_PX, 3)
    assert np.abs(pixels.astype(int) - picture(2048, 1536)).mean() < 2


def test_limits_are_settable(tmp_path: Path) -> None:
    small = save(tmp_path / "small.png", picture(40, 30))
    assert read_portrait_with(small, InputLimits(min_side_px=30)).shape == (30, 40, 3)


def read_portrait_with(path: Path, limits: InputLimits) -> np.ndarray:
    return open_portrait(path, limits=limits).pixels


def test_every_suffix_is_of_a_format_that_is_read() -> None:
    pillow_heif.register_heif_opener()
    known = Image.registered_extensions()
    formats = {suffix: known.get(suffix, "HEIF") for suffix in PORTRAIT_SUFFIXES}
    assert set(formats.values()) == set(_FORMATS)


@pytest.mark.parametrize("missing", [1, 2, 3])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_lacks_its_end_mark_is_read(missing: int, progressive: bool, tmp_path: Path) -> None:
    """As browsers show it; the third byte from the end belongs to the last few rows."""
    whole = save(tmp_path / "whole.jpg", quality=98, subsampling=0, progressive=progressive)
    short = tmp_path / "short.jpg"
    short.write_bytes(whole.read_bytes()[:-missing])
    apart = np.abs(read_portrait(short).astype(int) - read_portrait(whole))
    assert apart[:-16].max() == 0
    assert missing > 2 or apart.max() == 0


@pytest.mark.parametrize("share", [0.3, 0.6, 0.8])
def test_a_jpeg_that_lacks_rows_stays_refused(share: float, tmp_path: Path) -> None:
    """Though a decoder would paint what is missing grey."""
    noise = np.random.default_rng(0).integers(0, 255, (400, 300, 3), dtype=np.uint8)
    path = save(tmp_path / "half.jpg", noise)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(BadInput, match=r"half\.jpg is damaged or cut short"):
        read_portrait(path)
