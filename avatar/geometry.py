"""Pixels, latents, tokens, audio frames: the only home of strides, rates and block sizes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from avatar.errors import BadInput

FPS = 25  # video frames a second; the model was trained at this rate and no other
VAE_TIME_STRIDE = 4  # video frames in a latent frame
BLOCK_LATENT_FRAMES = 3  # latent frames in a block, the unit of autoregression
BLOCK_FRAMES = BLOCK_LATENT_FRAMES * VAE_TIME_STRIDE
SPEECH_HZ = 16_000  # what speech models listen to
SOUND_HZ = 48_000  # what the video carries; 1920 samples a frame

_SIZE = re.compile(r"^\s*(\d{1,5})\s*[*x×X]\s*(\d{1,5})\s*$")


@dataclass(frozen=True)
class Size:
    """A picture's area as width × height in pixels; the output keeps the portrait's aspect within it."""

    width: int
    height: int

    @classmethod
    def parse(cls, text: str) -> Size:
        """Read "704*384" (also "704x384").

        Raises: BadInput when the text is no size.
        """
        match = _SIZE.match(text)
        if not match or not int(match[1]) or not int(match[2]):
            raise BadInput(
                f"size {text!r} is not understood.", 'Write width*height in pixels, for example "704*384".'
            )
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.width}*{self.height}"
