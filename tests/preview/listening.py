"""Speech for tests, as the viseme network listens to it."""

import numpy as np

from avatar.geometry import SPEECH_HZ
from avatar.preview.visemes import Listen


def in_memory(samples: np.ndarray) -> Listen:
    """Listen to samples at 16 kHz, (n,) float32."""
    return lambda start, stop: samples[start:stop]


class CountingListen:
    """Noise of any length that keeps count of what was asked for, in samples."""

    def __init__(self, num_samples: int) -> None:
        self.num_samples, self.total, self.longest = num_samples, 0, 0
        self._noise = np.random.default_rng(1).normal(0, 0.05, SPEECH_HZ).astype(np.float32)

    def __call__(self, start: int, stop: int) -> np.ndarray:
        stop = max(start, min(stop, self.num_samples))
        self.total, self.longest = self.total + stop - start, max(self.longest, stop - start)
        return self._noise[np.arange(start, stop) % SPEECH_HZ]
