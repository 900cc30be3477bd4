"""Speech: any audio track → a canonical 48 kHz mono 16-bit WAV on disk, and exact slices of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from avatar.geometry import FPS
from avatar.media.limits import Limits


@dataclass(frozen=True)
class Speech:
    """What was found in a file. num_samples at 48 kHz; peak_dbfs of the mono mix; source_hz, channels of the original."""

    num_samples: int
    peak_dbfs: float
    source_hz: int
    channels: int
    notices: tuple[str, ...] = ()

    @property
    def duration_s(self) -> float:
        raise NotImplementedError

    def num_frames(self, fps: int = FPS) -> int:
        """Video frames that cover it, the last one perhaps in part."""
        raise NotImplementedError


def write_speech(source: Path, target: Path, *, name: str | None = None, limits: Limits = Limits()) -> Speech:
    """Decode the best audio track of source into target, 48 kHz mono 16-bit WAV, in bounded memory. Raises: BadInput."""
    raise NotImplementedError


class SpeechReader:
    """Slices of a canonical WAV: a context manager; memory does not grow with the length; not for several threads."""

    num_samples: int  # at 48 kHz
    num_samples_16k: int

    def __init__(self, path: Path, fps: int = FPS) -> None:
        raise NotImplementedError

    def sound(self, start_frame: int, num_frames: int) -> np.ndarray:
        """Samples that belong to these video frames, int16 (num_frames * 1920,) at 48 kHz; silence past the end."""
        raise NotImplementedError

    def listen(self, start: int, stop: int) -> np.ndarray:
        """Samples start:stop at 16 kHz, float32 in [-1, 1]; silence outside the speech; the same however it is chunked."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> SpeechReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
