"""A stream keeps its size when the model's changes: what was shown is scaled for the model, and back.

Pictures are scaled without cropping. Where the two sizes differ in shape the model sees the person a little
squeezed, and the stream shows no change of framing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from avatar.geometry import Size, output_size
from avatar.media import portrait
from avatar.pipeline.conditioning import prepare_portrait
from avatar.preset import Preset
from avatar.request import Request

LEVELS = 127.5  # of a pixel from 0 to 1


def video_size(request: Request) -> Size:
    """The video's own size: the portrait's aspect within the preset's area."""
    return portrait.video_size(request.portrait, request.preset)


def size_within(stream: Size, preset: Preset) -> Size:
    """The model's size for a stream: the same, or the nearest shape within a preset's smaller area."""
    return output_size(stream.width, stream.height, preset.generation.size)


def still(picture: Path, size: Size) -> np.ndarray:
    """The portrait as a stream frames it, uint8 (H, W, 3)."""
    pixels = prepare_portrait(picture, size).add(1.0).mul(LEVELS).round()
    return pixels.permute(1, 2, 0).numpy().astype(np.uint8)


def framed(picture: Path, stream: Size, size: Size, work: Path) -> Path:
    """The portrait for the model's size, framed as in the stream; a file in work where the two differ."""
    if size == stream:
        return picture
    path = work / f"framed-{size.width}x{size.height}.png"
    Image.fromarray(resized(still(picture, stream)[None], size)[0]).save(path)
    return path


def resized(frames: np.ndarray, size: Size) -> np.ndarray:
    """Frames, uint8 (T, H, W, 3), scaled by Lanczos's filter; the same ones where they have the size."""
    if frames.shape[1:3] == (size.height, size.width):
        return frames
    shape = (size.width, size.height)
    return np.stack([np.asarray(Image.fromarray(f).resize(shape, Image.Resampling.LANCZOS)) for f in frames])
