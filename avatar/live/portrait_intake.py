"""Turn a portrait into a live request: it is read and checked as for a video, before anything loads."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from avatar.media.atomic import disk_error
from avatar.media.background.choice import check_live_background
from avatar.media.background.intake import open_background
from avatar.media.face_choice import FaceFinder
from avatar.media.files import display_name
from avatar.media.framing import framed
from avatar.media.limits import InputLimits
from avatar.media.portrait import smaller_video
from avatar.media.readers import Reader
from avatar.preset import PRESETS_DIR, Preset, load_preset
from avatar.request import LiveRequest
from avatar.settings import Picture, refuse_settings

LIVE_PRESETS = PRESETS_DIR / "live"


def live_preset(name: str) -> Preset:
    """Load a live preset by its name or the path of a .toml file. Raises: BadInput."""
    return load_preset(name, LIVE_PRESETS)


def operators_preset(name: str, **settings: Any) -> Preset:
    """A live preset with settings of the server's operator; None and "" leave its own.

    Raises: BadInput, also for one that its engine cannot honour.
    """
    preset = live_preset(name)
    given = {key: value for key, value in settings.items() if value}
    refuse_settings(preset.engine, given)
    return preset.with_settings(**given)


def moving(preset: Preset, motion: Any) -> Preset:
    """The preset with another motion; None or "" leaves its own. Raises: BadInput."""
    return preset.with_settings(motion=motion) if motion else preset


def open_live_request(
    portrait: Path,
    preset: Preset,
    folder: Path,
    *,
    name: str | None = None,
    prompt: str = "",
    face_points: Mapping[str, tuple[float, float]] | None = None,
    head_only: bool = False,
    limits: InputLimits | None = None,
    reader: Reader | None = None,
    picture_settings: Picture | None = None,
    finder: FaceFinder | None = None,
) -> LiveRequest:
    """A request with its own subfolder of `folder`. picture_settings, finder: see media.intake.open_request.

    Raises: BadInput for a picture that cannot be used.
    """
    name = display_name(portrait, name)
    preview = preset.engine == "preview"
    asked, reader = picture_settings or Picture(), reader or Reader()
    check_live_background(asked.background)
    picture = reader.portrait(portrait, name=name, limits=limits)
    points = dict(face_points) if face_points and preview else None
    shown = framed(picture.pixels, asked, name, points=points, finder=finder)
    background = open_background(asked.background, shown.pixels, name, reader, limits)
    height, width = shown.pixels.shape[:2]
    smaller = smaller_video(width, height, preset, name)  # raises for an unsuitable picture size
    try:
        work = Path(tempfile.mkdtemp(prefix="live-", dir=folder))
    except OSError as error:
        raise disk_error(error) from error
    try:
        png = work / "portrait.png"
        Image.fromarray(shown.pixels).save(png, compress_level=1)
        behind = background.write(work)
    except OSError as error:
        shutil.rmtree(work)
        raise disk_error(error) from error
    except BaseException:
        shutil.rmtree(work)
        raise
    return LiveRequest(
        portrait=png,
        work=work,
        preset=preset,
        portrait_name=name,
        prompt=prompt or preset.generation.prompt,
        face_points=shown.points,
        head_only=head_only and preview,
        face=shown.face,
        notices=(*shown.notices, *smaller),
        background=background.background,
        background_picture=behind,
    )
