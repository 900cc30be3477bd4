"""Pixels, latents, tokens, audio frames: the only module that defines strides, rates and block sizes."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from avatar.errors import BadInput

FPS = 25  # video frames per second, the only rate that the model was trained at
VAE_TIME_STRIDE = 4  # video frames per latent frame
BLOCK_LATENT_FRAMES = 3  # latent frames per block, the unit of autoregression
BLOCK_FRAMES = BLOCK_LATENT_FRAMES * VAE_TIME_STRIDE
VAE_SPACE_STRIDE = 8  # pixels per latent pixel, in each direction
LATENT_CHANNELS = 16
PATCH = (1, 2, 2)  # latent frames, rows and columns per token
SIDE_MULTIPLE = 64  # pixels; both sides of the picture are multiples of this
LEAD_IN_FRAMES = 3  # first frames of the first block, never shown
MOTION_FRAMES = 73  # video frames of motion before the first block
MOTION_LATENT_FRAMES = 19
AUDIO_FEATURE_HZ = 30  # speech features per second, before one is picked per video frame
SPEECH_HZ = 16_000  # sample rate of the speech models' input
SOUND_HZ = 48_000  # sample rate of the video's sound; 1920 samples per frame


class FramePackBucket(NamedTuple):
    """Motion frames with the same packing: how many latent frames, and frames, rows and columns per token."""

    num_frames: int
    patch: tuple[int, int, int]


FRAMEPACK = (  # nearest first; together they make up the motion latent frames
    FramePackBucket(1, (1, 2, 2)),
    FramePackBucket(2, (2, 4, 4)),
    FramePackBucket(16, (4, 8, 8)),
)

_SIZE = re.compile(r"^\s*(\d{1,5})\s*[*x×X]\s*(\d{1,5})\s*$")


@dataclass(frozen=True)
class Size:
    """A picture's area as width × height in pixels; the output keeps the portrait's aspect within it."""

    width: int
    height: int

    @classmethod
    def parse(cls, text: str) -> Size:
        """Read "704*384" (also "704x384").

        Raises: BadInput when the text is not a size.
        """
        match = _SIZE.match(text)
        if not match or not int(match[1]) or not int(match[2]):
            raise BadInput(
                f"size {text[:60]!r} is not understood.",
                'Write width*height in pixels, for example "704*384".',
            )
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.width}*{self.height}"

    @property
    def area(self) -> int:
        return self.width * self.height


def output_size(portrait_width: int, portrait_height: int, size: Size | str) -> Size:
    """The video's size: the portrait's aspect, as large as the area allows, with sides multiples of 64.

    Scales are tried downward in a hundred steps until the padded picture fits the area.
    Raises: BadInput when the area is smaller than a single 64 x 64 square.
    Source: Alibaba-Quark/LiveAvatar liveavatar/models/wan/causal_s2v_pipeline.py.
    """
    area = (Size.parse(size) if isinstance(size, str) else size).area
    if area < SIDE_MULTIPLE**2:
        raise BadInput(
            f"size {size} is too small: the model's grid needs {SIDE_MULTIPLE}*{SIDE_MULTIPLE}.",
            'Take a larger size, for example "384*256".',
        )
    smallest, largest = _scale_range(portrait_width, portrait_height, area)
    for step in range(100):
        scale = largest - (largest - smallest) * step / 100
        width = _padded(int(portrait_width * scale))
        height = _padded(int(portrait_height * scale))
        if 0 < width * height <= area:
            return Size(width, height)
    width = int((area * portrait_width / portrait_height) ** 0.5 // SIDE_MULTIPLE * SIDE_MULTIPLE)
    height = int((area * portrait_height / portrait_width) ** 0.5 // SIDE_MULTIPLE * SIDE_MULTIPLE)
    if not width or not height:  # a portrait too long and narrow for the area
        raise BadInput(
            f"A portrait of {portrait_width} x {portrait_height} pixels does not fit size {size}.",
            "Crop the portrait, or take a larger size.",
        )
    return Size(width, height)


def _scale_range(width: int, height: int, area: int) -> tuple[float, float]:
    """The smallest and largest scale at which the picture may fit: with maximum padding, and with none."""
    if width * height <= area:
        return 0.1, 1.0
    most_padding = SIDE_MULTIPLE - 1
    a, b, c = width * height, most_padding * (width + height), most_padding**2 - area
    return (math.sqrt(b * b - 2 * a * c) - b) / (2 * a), math.sqrt(area / a)


def _padded(side: int) -> int:
    return math.ceil(side / SIDE_MULTIPLE) * SIDE_MULTIPLE


def covering_size(width: int, height: int, size: Size) -> Size:
    """A picture's size after scaling it to cover another, before cropping it about its centre.

    The fitting side is exact, the other one is rounded down to whole pixels. Source: torchvision's Resize.
    """
    if width * size.height <= height * size.width:
        return Size(size.width, size.width * height // width)
    return Size(size.height * width // height, size.height)


def shown_part(width: int, height: int, frame: Size) -> tuple[float, float, float, float]:
    """What a frame shows of a picture that is scaled to cover it and cropped about its centre.

    Left, top, right and bottom, in fractions of the picture of width x height.
    """
    scaled = covering_size(width, height, frame)
    left, top = (scaled.width - frame.width) / 2, (scaled.height - frame.height) / 2
    right, bottom = left + frame.width, top + frame.height
    return left / scaled.width, top / scaled.height, right / scaled.width, bottom / scaled.height


def within_part(
    box: tuple[float, float, float, float], part: tuple[float, float, float, float]
) -> tuple[float, float, float, float]:
    """A box of a picture as a box of a part of it; both, and the result, in fractions."""
    left, top, right, bottom = part
    across, down = right - left, bottom - top
    return (
        (box[0] - left) / across,
        (box[1] - top) / down,
        (box[2] - left) / across,
        (box[3] - top) / down,
    )


def audio_indices(num_frames: int, fps: int = FPS, start: int = 0) -> np.ndarray:
    """The index of each video frame's speech feature at 30 Hz; features past the end of the speech are zeros.

    num_frames: up to this one, from frame start on.
    Halves are rounded to the even index. Source: Alibaba-Quark/LiveAvatar
    liveavatar/models/wan/wan_2_2/modules/s2v/audio_encoder.py.
    """
    return np.round(np.arange(start, num_frames) * AUDIO_FEATURE_HZ / fps).astype(np.int64)


def num_blocks(num_frames: int) -> int:
    """Blocks to generate so that num_frames remain after the lead-in."""
    return math.ceil((num_frames + LEAD_IN_FRAMES) / BLOCK_FRAMES)


@dataclass(frozen=True)
class Geometry:
    """All counts that follow from the picture's size and the attention window.

    width, height: pixels, multiples of 64. window_frames: latent frames that a block attends to, including
    itself.
    """

    width: int
    height: int
    window_frames: int

    def __post_init__(self) -> None:
        if (
            self.width % SIDE_MULTIPLE
            or self.height % SIDE_MULTIPLE
            or min(self.width, self.height) < SIDE_MULTIPLE
        ):
            raise BadInput(
                f"{self.width} x {self.height} pixels are no picture that the model makes.",
                f"Both sides must be multiples of {SIDE_MULTIPLE}.",
            )
        if self.window_frames <= BLOCK_LATENT_FRAMES:
            raise BadInput(
                f"A window of {self.window_frames} latent frames leaves no room for the past.",
                f"infer_frames must be at least {(BLOCK_LATENT_FRAMES + 1) * VAE_TIME_STRIDE}.",
            )

    @classmethod
    def of(cls, size: Size, infer_frames: int) -> Geometry:
        """The geometry of clips of infer_frames video frames, a multiple of 4. Raises: BadInput."""
        if infer_frames % VAE_TIME_STRIDE:
            raise BadInput(
                f"infer_frames {infer_frames} is no multiple of {VAE_TIME_STRIDE}.", "Take 32 or 48."
            )
        return cls(size.width, size.height, infer_frames // VAE_TIME_STRIDE)

    @property
    def latent_height(self) -> int:
        return self.height // VAE_SPACE_STRIDE

    @property
    def latent_width(self) -> int:
        return self.width // VAE_SPACE_STRIDE

    @property
    def rows(self) -> int:
        return self.latent_height // PATCH[1]

    @property
    def columns(self) -> int:
        return self.latent_width // PATCH[2]

    @property
    def frame_tokens(self) -> int:
        return self.rows * self.columns

    @property
    def block_tokens(self) -> int:
        return BLOCK_LATENT_FRAMES * self.frame_tokens

    @property
    def past_frames(self) -> int:
        """Past latent frames that a block attends to, and that a KV ring therefore keeps."""
        return self.window_frames - BLOCK_LATENT_FRAMES

    @property
    def motion_tokens(self) -> int:
        cells = self.latent_height * self.latent_width
        return sum(bucket.num_frames * cells // math.prod(bucket.patch) for bucket in FRAMEPACK)

    @property
    def condition_tokens(self) -> int:
        """Tokens of the reference frame and the packed motion frames."""
        return self.frame_tokens + self.motion_tokens

    @property
    def block_shape(self) -> tuple[int, int, int, int]:
        """Latent channels, frames, height and width of a block."""
        return LATENT_CHANNELS, BLOCK_LATENT_FRAMES, self.latent_height, self.latent_width

    @property
    def second_clip_block(self) -> int:
        """The first block of the second clip; from it on, the first generated frame is the anchor."""
        return math.ceil(self.window_frames / BLOCK_LATENT_FRAMES)
