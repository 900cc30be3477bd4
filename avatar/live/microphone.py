"""Microphone sound as a client sends it: 16-bit mono at any rate, in pieces of any length."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np

from avatar.errors import BadInput
from avatar.geometry import SOUND_HZ

RATES = range(8_000, 96_001)


class Microphone:
    """Resamples incoming sound to SOUND_HZ."""

    def __init__(self, hz: int = 16_000) -> None:
        """Raises: BadInput for a rate outside RATES."""
        if hz not in RATES:
            raise BadInput(f"Sound at {hz} Hz is not taken.", "Send 8000 to 96000 samples a second.")
        self._hz, self._half = hz, b""
        self._resampler = av.AudioResampler("s16", "mono", SOUND_HZ)
        self._num_samples = 0

    def samples(self, data: bytes) -> np.ndarray:
        """int16 (n,) at SOUND_HZ from the next little-endian bytes; an odd byte is kept for the next call."""
        data = self._half + data
        whole = len(data) // 2 * 2
        self._half = data[whole:]
        if not whole:
            return np.empty(0, np.int16)
        heard = np.frombuffer(data[:whole], "<i2").astype(np.int16)
        if self._hz == SOUND_HZ:
            return heard
        frame = av.AudioFrame.from_ndarray(heard[None], "s16", "mono")
        frame.sample_rate, frame.pts, frame.time_base = self._hz, self._num_samples, Fraction(1, self._hz)
        self._num_samples += len(heard)
        pieces = [one.to_ndarray().reshape(-1) for one in self._resampler.resample(frame)]
        return np.concatenate(pieces).astype(np.int16) if pieces else np.empty(0, np.int16)
