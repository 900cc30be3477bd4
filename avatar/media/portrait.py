"""Portraits: any common picture file → upright 8-bit RGB of bounded size, or a BadInput that says why not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
from PIL import Image, ImageCms, ImageOps

from avatar import sizes
from avatar.errors import BadInput
from avatar.events import Notice
from avatar.geometry import Size
from avatar.media.brushes import of_brush
from avatar.media.files import check_file, display_name
from avatar.media.limits import InputLimits
from avatar.preset import Preset

log = logging.getLogger(__name__)

Decoded = TypeVar("Decoded")

WORKING_SIDE_PX = 2048  # longest side of what engines are given
BACKDROP = (224, 224, 224)  # neutral light grey behind transparent parts

_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "HEIF")
# The endings of files of these formats.
PORTRAIT_SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".heic", ".heif", ".hif")
_JPEG = ("JPEG", "MPO")
_END_MARK, _NOISE = b"\xff\xd9", b"\x55" * 4096
_LAST_ROWS = 16  # of a JPEG, which are coded together: a few bytes short they may be wrong
_STILLS = ("MPO", "HEIF")  # phones put several pictures into one file, the first being the one that is meant
_READABLE = "Use a PNG, JPEG, WebP, AVIF or HEIC file."


@dataclass(frozen=True)
class Portrait:
    """A picture ready for use.

    pixels: uint8 (H, W, 3), sRGB, upright. notices: what had to be changed, for the user.
    """

    pixels: np.ndarray
    notices: tuple[Notice, ...] = ()


def read_portrait(path: Path) -> np.ndarray:
    """The pixels of a portrait, uint8 (H, W, 3) RGB, longest side ≤ WORKING_SIDE_PX. Raises: BadInput."""
    return open_portrait(path).pixels


def open_portrait(path: Path, *, name: str | None = None, limits: InputLimits | None = None) -> Portrait:
    """Read a PNG, JPEG, WebP, AVIF or HEIC; size and kind are judged by the header, before any decoding.

    name: what messages call the file. Raises: BadInput.
    """
    return _opened(path, "portrait", _decode, display_name(path, name), limits or InputLimits())


def open_mask(
    path: Path, *, name: str | None = None, limits: InputLimits | None = None, brush: int | None = None
) -> np.ndarray:
    """The lightness of a picture as open_portrait reads it, uint8 (H, W); what is transparent is black.

    brush: white is what was painted with this one of brushes.BRUSHES. Raises: BadInput.
    """
    decode = _lightness if brush is None else partial(_painted, brush)
    return _opened(path, "mask", decode, display_name(path, name), limits or InputLimits())


def _opened(
    path: Path, kind: str, decode: Callable[[Image.Image, str], Decoded], name: str, limits: InputLimits
) -> Decoded:
    check_file(path, name, limits.max_portrait_bytes, kind)
    with path.open("rb") as file:
        image = _open_header(file, name, limits)
        _check_header(image, name, limits)
        try:
            return decode(_loaded(image, file), name)
        except BadInput:
            raise
        except Exception as error:  # Pillow's decoders raise a dozen kinds of errors for damaged data
            log.info("%s: %r", name, error)
            raise BadInput(
                f"{name} is damaged or cut short.", f"Export or download it again, or choose another {kind}."
            ) from error


def video_size(portrait: Path, preset: Preset) -> Size:
    """The size of a preset's video of a portrait that intake has written. Raises: BadInput."""
    with Image.open(portrait) as image:
        return sizes.video_size(preset.engine, image.width, image.height, preset.generation.size)


def smaller_video(width: int, height: int, preset: Preset, name: str) -> list[Notice]:
    """That the video is smaller than its preset's size allows, as the portrait of width x height is small.

    name: the portrait's. Nothing where it is as large as that size allows. Raises: BadInput.
    """
    size = preset.generation.size
    full = sizes.size_from_larger(preset.engine, width, height, size)
    if full is None:
        return []
    made = sizes.video_size(preset.engine, width, height, size)
    text = (
        f"The video of {name} has {made.width}×{made.height} pixels instead of {full.width}×{full.height},"
        f" which size {size} allows: the picture has only {width}×{height}."
        " Take a larger picture or a wider framing; or set a smaller size."
    )
    values = {"name": name, "size": size, "width": width, "height": height}
    values |= {"made": f"{made.width}×{made.height}", "full": f"{full.width}×{full.height}"}
    return [Notice("smaller_video", text, "warning", values=values)]


def _open_header(file: BinaryIO, name: str, limits: InputLimits) -> Image.Image:
    _register_formats()
    try:
        return Image.open(file, formats=_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name, "", limits) from error
    except Exception as error:  # as above: no two formats fail alike
        log.info("%s: %r", name, error)
        raise BadInput(f"{name} is not a picture that can be read.", _READABLE) from error


@cache
def _register_formats() -> None:
    import pillow_heif

    Image.init()  # Pillow's own that it does not load from the start
    pillow_heif.register_heif_opener()


def _check_header(image: Image.Image, name: str, limits: InputLimits) -> None:
    width, height = image.size
    shape = f"{width}×{height}"
    if width * height > limits.max_pixels or max(width, height) > limits.max_side_px:
        raise _too_large(name, f" ({shape} pixels)", limits)
    if min(width, height) < limits.min_side_px:
        raise BadInput(
            f"{name} is too small ({shape} pixels).",
            f"A portrait needs at least {limits.min_side_px} pixels on each side; 512 or more look good.",
        )
    if min(width, height) * WORKING_SIDE_PX < limits.min_side_px * max(width, height):
        raise BadInput(f"{name} is too narrow ({shape} pixels).", "Crop it to the head and shoulders.")
    if image.format not in _STILLS and getattr(image, "is_animated", False):
        raise BadInput(f"{name} is animated.", "Choose a still picture, or export one frame of it.")


def _too_large(name: str, shape: str, limits: InputLimits) -> BadInput:
    return BadInput(
        f"{name} is too large{shape}.",
        f"A portrait may have {limits.max_pixels / 1e6:.0f} megapixels and {limits.max_side_px} pixels a side"
        " at most; scale it down.",
    )


def _loaded(image: Image.Image, file: BinaryIO) -> Image.Image:
    """The picture with its pixels. Raises: what Pillow raises for damaged data."""
    try:
        return _load(image)
    except OSError:
        if image.format not in _JPEG:
            raise
        file.seek(0)
        whole = _unended(file.read())
        if whole is None:
            raise
        return whole


def _load(image: Image.Image) -> Image.Image:
    image.draft(image.mode, (WORKING_SIDE_PX, WORKING_SIDE_PX))  # JPEG only: decode no finer than is needed
    image.load()
    return image


def _unended(data: bytes) -> Image.Image | None:
    """A JPEG that lacks but its end mark, as browsers show it; None where some of the picture is missing.

    If all of it is there, what stands before the end mark changes nothing.
    """
    data = data.removesuffix(_END_MARK[:1])
    found, other = (
        _load(Image.open(BytesIO(data + more + _END_MARK), formats=_JPEG)) for more in (b"", _NOISE)
    )
    rows = (np.asarray(found) != np.asarray(other)).reshape(found.height, -1).any(axis=1)
    return found if rows.sum() <= _LAST_ROWS else None


def _painted(brush: int, image: Image.Image, name: str) -> np.ndarray:
    return of_brush(np.asarray(_bounded(image.convert("RGBA"), name)), brush)


def _lightness(image: Image.Image, name: str) -> np.ndarray:
    image = _bounded(_to_eight_bits(image), name)
    if image.mode != "RGBA":
        return np.asarray(image.convert("L"))
    black = Image.new("RGB", image.size)
    return np.asarray(Image.composite(image.convert("RGB"), black, image.getchannel("A")).convert("L"))


def _bounded(image: Image.Image, name: str) -> Image.Image:
    """No longer than WORKING_SIDE_PX, and upright."""
    image.thumbnail((WORKING_SIDE_PX, WORKING_SIDE_PX), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return _upright(image, name)


def _decode(image: Image.Image, name: str) -> Portrait:
    notices: list[Notice] = []
    profile = image.info.get("icc_profile")
    image = _bounded(_to_eight_bits(image), name)
    if image.mode != "RGBA":
        return Portrait(np.asarray(_to_srgb(image, profile, name, notices)), tuple(notices))
    alpha = image.getchannel("A")
    rgb = _to_srgb(image.convert("RGB"), profile, name, notices)
    lowest = np.asarray(alpha).min()
    if np.asarray(alpha).max() == 0:
        raise BadInput(f"{name} is wholly transparent.", "Choose a picture that shows a face.")
    if lowest < 255:
        text = f"{name} has transparent parts; they were filled with light grey."
        notices.append(Notice("transparent", text, values={"name": name}))
        rgb = Image.composite(rgb, Image.new("RGB", rgb.size, BACKDROP), alpha)
    return Portrait(np.asarray(rgb), tuple(notices))


def _upright(image: Image.Image, name: str) -> Image.Image:
    """Turned as its EXIF says; as it is where that cannot be read, which is what browsers do."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:  # a broken EXIF block raises as many kinds of errors as broken pixels do
        log.info("%s: its EXIF cannot be read: %r", name, error)
        return image


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """The picture in samples that can be scaled: RGBA where there is transparency, else RGB, L or CMYK."""
    if image.mode.startswith(("I", "F")):  # 16-bit grey; Pillow's own conversion clips
        rounded = np.rint(np.arange(65536) / 257).astype(np.uint8)
        grey = Image.fromarray(rounded[np.asarray(image).clip(0, 65535).astype(np.uint16)])
        grey.info = image.info
        return grey
    if image.has_transparency_data:
        return image.convert("RGBA")
    if image.mode == "1":
        return image.convert("L")
    return image if image.mode in ("L", "CMYK") else image.convert("RGB")


def _to_srgb(image: Image.Image, profile: bytes | None, name: str, notices: list[Notice]) -> Image.Image:
    """RGB, grey or CMYK → sRGB by the embedded profile; without a good one, by the usual formulas."""
    if profile and image.mode in ("RGB", "L", "CMYK"):
        try:
            source = ImageCms.ImageCmsProfile(BytesIO(profile))
            if "sRGB" not in ImageCms.getProfileDescription(source):
                srgb = ImageCms.createProfile("sRGB")
                converted = ImageCms.profileToProfile(image, source, srgb, outputMode="RGB")
                assert converted is not None  # only None when converted in place
                return converted
        except (ImageCms.PyCMSError, OSError, ValueError) as error:
            log.info("%s: %r", name, error)
            text = f"The colour profile in {name} cannot be read; its colours may look slightly off."
            notices.append(Notice("colour_profile", text, values={"name": name}))
    return image.convert("RGB")
