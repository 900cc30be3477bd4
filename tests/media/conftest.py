"""What several tests of media need."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from media_samples import PRESET_SETTINGS, save, write_wav

from avatar.media.intake import open_request
from avatar.preset import Preset
from avatar.request import Request


@pytest.fixture
def ask(tmp_path: Path) -> Callable[..., Request]:
    """A request for so many seconds of noise as speech; more arguments go to open_request."""

    def make(seconds: float = 4.0, **more: object) -> Request:
        samples = np.random.default_rng(7).uniform(-0.4, 0.4, round(seconds * 48_000))
        speech = write_wav(tmp_path / "spoken words.wav", samples, 48_000)
        portrait = save(tmp_path / "me.png")
        arguments = {"output": tmp_path / "out" / "film.mp4", "work": tmp_path / "work", **more}
        return open_request(portrait, speech, Preset(**PRESET_SETTINGS), **arguments)  # type: ignore[arg-type]

    return make
