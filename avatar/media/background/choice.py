"""What a user may put behind the person: the words of the setting, their colours, and a picture file."""

from __future__ import annotations

import re
from pathlib import Path

from avatar.errors import BadInput
from avatar.media.files import display_name
from avatar.paths import is_file
from avatar.request import BLUR, GREEN, KEEP, TRANSPARENT, TRANSPARENT_SUFFIXES
from avatar.validation import shown

WORDS = (KEEP, BLUR, GREEN, TRANSPARENT)
GREEN_COLOUR = (0, 177, 64)  # #00b140, the green of studio screens
_COLOUR = re.compile("#[0-9a-fA-F]{6}")


def is_picture(background: str) -> bool:
    """Whether a background is neither a word nor a colour, and so names a picture file."""
    return background not in WORDS and _COLOUR.fullmatch(background) is None


def check_live_background(background: str) -> None:
    """Refuse what no live session can show. Raises: BadInput."""
    if background == TRANSPARENT:
        raise BadInput(
            "A live session cannot be transparent: what browsers receive is H.264 or VP8 without alpha.",
            "Choose green, which other programs can key out.",
        )


def suffix_of(background: str) -> str:
    """The suffix of a finished video, where nobody has chosen one."""
    return TRANSPARENT_SUFFIXES[0] if background == TRANSPARENT else ".mp4"


def colour_of(background: str) -> tuple[int, int, int]:
    """Red, green and blue of a colour or of "green"."""
    if background == GREEN:
        return GREEN_COLOUR
    red, green, blue = (int(background[at : at + 2], 16) for at in (1, 3, 5))
    return red, green, blue


def check_background(background: str, where: str = "", *, files: bool = False) -> None:
    """Refuse what is no background. files: whether it may be the path of a picture. Raises: BadInput."""
    if not is_picture(background):
        return
    if not files:
        raise BadInput(
            f"{where}background is {shown(background)}.",
            f"It must be one of: {', '.join(WORDS)}, or a colour like #20242b.",
        )
    if background.startswith("#") or not is_file(Path(background)):
        name = background if background.startswith("#") else display_name(Path(background))
        raise BadInput(
            f"{where}background is {shown(name)}: no colour, and no picture that is there.",
            f"Give one of {', '.join(WORDS)}, a colour like #20242b, or the path of a picture.",
        )
