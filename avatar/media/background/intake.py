"""What a user wants behind the person, checked before anything loads and written to the run's folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from avatar.errors import BadInput
from avatar.media.background.choice import is_picture
from avatar.media.files import display_name
from avatar.media.limits import InputLimits
from avatar.media.readers import Reader
from avatar.request import KEEP, PICTURE_FILE

LEAST_PERSON = 0.03  # share of the portrait


@dataclass(frozen=True)
class OpenedBackground:
    """A checked background. background: as a Request has it.

    picture, name: of a file, uint8 (H, W, 3) RGB, and what it is called.
    """

    background: str = KEEP
    picture: np.ndarray | None = None
    name: str = ""

    def write(self, folder: Path) -> Path | None:
        """Write the picture, if there is one, and return where it is. Raises: OSError."""
        if self.picture is None:
            return None
        path = folder / "background.png"
        Image.fromarray(self.picture).save(path, compress_level=1)
        return path


def open_background(
    background: str, portrait: np.ndarray, portrait_name: str, reader: Reader, limits: InputLimits | None
) -> OpenedBackground:
    """Check a background. background: as the setting has it. portrait: uint8 (H, W, 3) RGB, framed.

    Raises: BadInput for a picture that cannot be used, or a portrait in which no person stands out.
    """
    if background == KEEP:
        return OpenedBackground()
    from avatar.media.background.matte import SteadyMatte  # imports OpenCV; only for such a run

    picture, name = None, ""
    if is_picture(background):
        path = Path(background)
        name = display_name(path)
        picture = reader.portrait(path, name=name, limits=limits).pixels
    if SteadyMatte().of(portrait).mean() < 255 * LEAST_PERSON:
        raise BadInput(
            f"No person can be told from the background in {portrait_name}.",
            "Leave background at keep, or take a portrait in which the person stands out.",
        )
    return OpenedBackground(PICTURE_FILE if picture is not None else background, picture, name)
