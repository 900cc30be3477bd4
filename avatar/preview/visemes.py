"""Speech to visemes (mouth shapes): log-mel features and a small convolutional network, in numpy.

Everything here is a pure function of the speech and time. Outside the speech is silence, and a frame depends
on `VisemeNetwork.CONTEXT` frames on either side, so any stretch can be computed alone with the same result.
This module does not know what a mouth looks like: `articulation.py` does. `training/` made the network.
"""

import importlib.resources
from collections.abc import Callable, Mapping
from typing import IO

import numpy as np

from avatar.geometry import SPEECH_HZ

# Mouth shapes, one per group of sounds that look alike. Source and order: Oculus LipSync's viseme reference.
VISEMES = ("sil", "PP", "FF", "TH", "DD", "kk", "CH", "SS", "nn", "RR", "aa", "E", "ih", "oh", "ou")

# Feature frames per second, and samples from one to the next.
FRAME_HZ = 100
HOP = SPEECH_HZ // FRAME_HZ

WINDOW = 400
FFT_SIZE = 512
NUM_MELS = 40
MEL_RANGE_HZ = (60.0, 7600.0)
# Added to each mel band's power, so that sound 20 dB below the quietest speech sound looks like silence.
POWER_FLOOR = 1e-2
LOG_SCALE = 0.25

# Speech is normalised to this rms before its features are computed.
NORMAL_RMS = 0.08
# Quieter sound is not taken for speech, so that a noisy room is not amplified to its level (-45 dBFS).
FLOOR_RMS = 10 ** (-45 / 20)
LEVEL_FRAME = SPEECH_HZ // 50
# Share of level frames that counts as loud.
LOUD_SHARE = 0.4
LEVEL_EXCERPT_S, LEVEL_EXCERPTS = 2, 60

# Speech by sample index: (start, stop) at SPEECH_HZ, 0 <= start <= stop -> (n,) float32 in -1..1, where n is
# stop - start, or less at the end of the speech.
Listen = Callable[[int, int], np.ndarray]

# Loudness of speech as an rms: of the whole, or by feature frame, (start, stop) -> (stop - start,) float32.
Level = float | Callable[[int, int], np.ndarray]


def level_of(level: Level, start: int, stop: int) -> float | np.ndarray:
    """Return the level of frames start..stop: one number, or one per frame."""
    return level(start, stop) if callable(level) else level


def read_padded(listen: Listen, start: int, stop: int) -> np.ndarray:
    """Return samples start..stop, (stop - start,) float32, with silence before and after the speech."""
    out = np.zeros(stop - start, np.float32)
    if stop > 0:
        first = max(start, 0)
        samples = listen(first, stop)
        out[first - start : first - start + len(samples)] = samples
    return out


def speech_level(listen: Listen, num_samples: int) -> float:
    """Return the rms of the loud part of a speech, at least `FLOOR_RMS`.

    A long speech is sampled at `LEVEL_EXCERPTS` evenly spaced excerpts, so that an hour takes no longer than
    two minutes. num_samples: length of the speech at SPEECH_HZ.
    """
    length = LEVEL_EXCERPT_S * SPEECH_HZ
    if num_samples <= LEVEL_EXCERPTS * length:
        starts = range(0, num_samples, length)
    else:
        starts = np.linspace(0, num_samples - length, LEVEL_EXCERPTS).astype(int).tolist()
    powers = []
    for start in starts:
        samples = listen(start, min(start + length, num_samples))
        whole = len(samples) // LEVEL_FRAME * LEVEL_FRAME
        powers.append((samples[:whole].reshape(-1, LEVEL_FRAME) ** 2).mean(1))
    ordered = np.sort(np.concatenate(powers)) if powers else np.empty(0, np.float32)
    loud = ordered[int(len(ordered) * (1 - LOUD_SHARE)) :]
    return max(float(np.sqrt(loud.mean(dtype=np.float64))), FLOOR_RMS) if len(loud) else FLOOR_RMS


def mel_filters() -> np.ndarray:
    """Return triangular filters on O'Shaughnessy's mel scale, (FFT_SIZE // 2 + 1, NUM_MELS) float32."""

    def to_mel(hz: float) -> float:
        return 2595 * np.log10(1 + hz / 700)

    edges = 700 * (
        10 ** (np.linspace(to_mel(MEL_RANGE_HZ[0]), to_mel(MEL_RANGE_HZ[1]), NUM_MELS + 2) / 2595) - 1
    )
    bins = np.arange(FFT_SIZE // 2 + 1)[:, None] * SPEECH_HZ / FFT_SIZE
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (bins - low) / (centre - low), (high - bins) / (high - centre)
    return np.maximum(0, np.minimum(rising, falling)).astype(np.float32)


_FILTERS = mel_filters()
_HANN = np.hanning(WINDOW).astype(np.float32)


def log_mels(listen: Listen, start: int, stop: int, level: Level) -> np.ndarray:
    """Return the features of frames start..stop, (stop - start, NUM_MELS) float32.

    Frame i covers WINDOW samples around the middle of its hop. level: from `speech_level` or `loudness`.
    """
    first = start * HOP + HOP // 2 - WINDOW // 2
    samples = read_padded(listen, first, first + (stop - start - 1) * HOP + WINDOW)
    gains = np.reshape(np.float32(NORMAL_RMS) / level_of(level, start, stop), (-1, 1)).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(samples, WINDOW)[::HOP] * _HANN * gains
    power = np.abs(np.fft.rfft(windows, FFT_SIZE, axis=1)).astype(np.float32) ** 2
    return np.log(power @ _FILTERS + np.float32(POWER_FLOOR)) * np.float32(LOG_SCALE)


class VisemeNetwork:
    """A dilated convolutional network from log-mels to the probabilities of `VISEMES`.

    weights: "input", "block0".. (taps, channels in, channels out) and "output" (channels in, visemes), each
    with its ".bias"; batch normalisation is folded in. float32.
    """

    DILATIONS = (1, 2, 4, 8, 4, 2, 1)
    INPUT_TAPS = 5
    BLOCK_TAPS = 3
    # Frames on either side that a frame's result depends on.
    CONTEXT = INPUT_TAPS // 2 + sum(DILATIONS) * (BLOCK_TAPS // 2)

    def __init__(self, weights: Mapping[str, np.ndarray]) -> None:
        self._weights = {name: np.asarray(value, np.float32) for name, value in weights.items()}

    @classmethod
    def load(cls, file: IO[bytes] | None = None) -> "VisemeNetwork":
        """Load the network in the package, or one from an open .npz file."""
        if file is not None:
            with np.load(file) as weights:
                return cls(weights)
        with (importlib.resources.files("avatar.preview") / "models" / "viseme.npz").open("rb") as shipped:
            return cls.load(shipped)

    def __call__(self, mels: np.ndarray) -> np.ndarray:
        """Map (T + 2 CONTEXT, NUM_MELS) features to (T, visemes) probabilities."""
        hidden = np.maximum(self._convolve("input", mels, 1), 0)
        for index, dilation in enumerate(self.DILATIONS):
            branch = np.maximum(self._convolve(f"block{index}", hidden, dilation), 0)
            hidden = hidden[dilation:-dilation] + branch
        logits = hidden @ self._weights["output"] + self._weights["output.bias"]
        exponentials = np.exp(logits - logits.max(1, keepdims=True))
        return exponentials / exponentials.sum(1, keepdims=True)

    def _convolve(self, name: str, x: np.ndarray, dilation: int) -> np.ndarray:
        kernel, bias = self._weights[name], self._weights[name + ".bias"]
        length = len(x) - (len(kernel) - 1) * dilation
        return sum((x[i * dilation :][:length] @ tap for i, tap in enumerate(kernel)), start=bias)

    def probabilities(self, listen: Listen, start: int, stop: int, level: Level) -> np.ndarray:
        """Return viseme probabilities of frames start..stop at `FRAME_HZ`, (stop - start, visemes) float32.

        Frames may lie before or after the speech. level: from `speech_level` or `loudness`.
        """
        return self(log_mels(listen, start - self.CONTEXT, stop + self.CONTEXT, level))
