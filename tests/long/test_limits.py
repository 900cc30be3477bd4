"""Speech that is too long is refused with what makes it possible."""

from __future__ import annotations

from pathlib import Path

from avatar.long.job import Job
from avatar.preset import Preset

PRESET = Preset(name="t", title="", summary="", engine="preview")


def limits(long: bool, seconds: float | None = None):
    return Job(Path("a.png"), Path("b.wav"), Path("c.mp4"), PRESET, max_duration_s=seconds)._limits(long)


def test_each_limit_names_what_goes_beyond_it() -> None:
    assert "checkpoint_every" in limits(False).longer
    assert limits(True).max_speech_s == 86_400
    assert limits(False, 60).max_speech_s == 60
    assert "max_duration" in limits(False, 60).longer
