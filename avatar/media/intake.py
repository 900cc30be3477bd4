"""The one door for user input: everything that can be refused is refused here, before an engine starts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from avatar.media.limits import Limits
from avatar.preset import Preset
from avatar.request import Request


def open_request(
    portrait: Path | str,
    speech: Path | str,
    preset: Preset,
    *,
    output: Path | str,
    work: Path | str,
    prompt: str = "",
    face_points: Mapping[str, tuple[float, float]] | None = None,
    limits: Limits = Limits(),
    portrait_name: str | None = None,
    speech_name: str | None = None,
    segment_s: float = 2.0,
) -> Request:
    """Check portrait, speech, prompt, points, output place and disk; write portrait.png and speech.wav into work.

    portrait_name, speech_name: the user's own file names, when the paths are those of uploads.
    On refusal nothing is left behind in work. Raises: BadInput.
    """
    raise NotImplementedError
