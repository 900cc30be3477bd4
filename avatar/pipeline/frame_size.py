"""Keep a stream's frame size when the model's size changes, by scaling frames to the model's size and back.

Frames are scaled without cropping. If the aspect ratios differ, the model sees the person slightly squeezed,
but the framing of the stream does not change.
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

LEVELS = 127.5  # 8-bit levels per unit of pixel value


def video_size(request: Request) -> Size:
    """The video's size: the portrait's aspect ratio within the preset's area."""
    return portrait.video_size(request.portrait, request.preset)


def size_within(stream: Size, preset: Preset) -> Size:
    """The model's size for a stream: the same, or the nearest aspect ratio within a preset's smaller area."""
    return output_size(stream.width, stream.height, preset.generation.size)


def still(picture: Path, size: Size) -> np.ndarray:
    """The portrait, framed as in the stream, uint8 (H, W, 3)."""
    pixels = prepare_portrait(picture, size).add(1.0).mul(LEVELS).round()
    return pixels.permute(1, 2, 0).numpy().astype(np.uint8)


def framed(picture: Path, stream: Size, size: Size, work: Path) -> Path:
    """The portrait at the model's size, framed as in the stream; a new file in work if the sizes differ."""
    if size == stream:
        return picture
    path = work / f"framed-{size.width}x{size.height}.png"
    Image.fromarray(resized(still(picture, stream)[None], size)[0]).save(path)
    return path


def resized(frames: np.ndarray, size: Size) -> np.ndarray:
    """Frames, uint8 (T, H, W, 3), scaled with a Lanczos filter; unchanged if they already have the size."""
    if frames.shape[1:3] == (size.height, size.width):
        return frames
    shape = (size.width, size.height)
    return np.stack([np.asarray(Image.fromarray(f).resize(shape, Image.Resampling.LANCZOS)) for f in frames])
