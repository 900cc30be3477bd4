"""Level of each passage of a speech, so that quiet passages move the mouth like loud ones but noise does not.

A pure function of the speech and time, like everything that drives the mouth: a frame depends on the seconds
around it and on the overall level, so a video may start anywhere.
"""

import sys
from functools import lru_cache

import numpy as np

from avatar.geometry import SPEECH_HZ
from avatar.preview.visemes import FRAME_HZ, LEVEL_FRAME, LOUD_SHARE, Listen, read_padded, speech_level

# Levels are computed ten times a second, from the power of 20 ms windows.
STEP_HZ = 10
POWERS_IN_STEP = SPEECH_HZ // LEVEL_FRAME // STEP_HZ
# The loudness at a step is that of this many steps on either side: one or two syllables.
_NEAR = STEP_HZ // 2
# Noise is also there between syllables: the quietest tenth of this many steps on either side.
_NOISE, _NOISE_SHARE = 3 * STEP_HZ, 0.1
# Speech exceeds the noise by more than the noise's own fluctuations.
_RISE_DB = 9.0
# A passage is speech of similar loudness within this many steps on either side; nearer steps weigh more.
_REACH, _REACH_SIGMA = 4 * STEP_HZ, 2.0 * STEP_HZ
_ALIKE_DB, _UNLIKE_DB = 9.0, 15.0
# Anything shorter than _SHORT is a click or a cough; from _LONG on it is certainly a passage. In steps.
_SHORT, _LONG = 1.2 * STEP_HZ, 2.4 * STEP_HZ
# Weight of the overall level where there is no speech nearby.
_WHOLE_WEIGHT = 0.05
# Lower limits of a passage's level: relative to the overall level, and absolute (dBFS).
_RANGE_DB, _FLOOR_DB = 30.0, -56.0
_SILENCE_DB = -100.0  # digital silence, which says nothing about the noise
_CHUNK = 2 * STEP_HZ  # steps read at once
CONTEXT = _REACH + _NEAR + _NOISE
VOICE_SAMPLES = 4 * SPEECH_HZ  # of a text's voice, by which its overall level is judged


class PassageLevel:
    """The rms of the speech around each feature frame, a `visemes.Level`."""

    def __init__(self, listen: Listen, num_samples: int) -> None:
        """num_samples: length of the speech at SPEECH_HZ."""
        self._listen, self._num_steps = listen, -(-num_samples * STEP_HZ // SPEECH_HZ)
        self._whole_db = 20 * np.log10(speech_level(listen, num_samples))
        self._chunk = lru_cache(maxsize=16)(self._read_chunk)

    def __call__(self, start: int, stop: int) -> np.ndarray:
        """Return the rms of frames start..stop at `FRAME_HZ`, (stop - start,) float32."""
        per_step = FRAME_HZ // STEP_HZ
        first, last = start // per_step - 1, stop // per_step + 2
        middles = (np.arange(first, last) + 0.5) * per_step - 0.5
        found = np.interp(np.arange(start, stop), middles, self._levels_db(first, last))
        return (10 ** (found / 20)).astype(np.float32)

    def _levels_db(self, first: int, last: int) -> np.ndarray:
        """The level of steps first..last in dBFS, (last - first,)."""
        powers = self._powers(first - CONTEXT, last + CONTEXT)  # NaN outside the speech
        return levels_db(powers, self._whole_db)[0]

    def _powers(self, first: int, last: int) -> np.ndarray:
        """Mean squares of 20 ms windows, (last - first, POWERS_IN_STEP) float64; NaN outside the speech."""
        chunks = range(first // _CHUNK, -(-last // _CHUNK))
        powers = np.concatenate([self._chunk(index) for index in chunks])
        return powers[first - chunks.start * _CHUNK :][: last - first]

    def _read_chunk(self, index: int) -> np.ndarray:
        start, per_step = index * _CHUNK, SPEECH_HZ // STEP_HZ
        steps = np.arange(start, start + _CHUNK)
        inside = (steps >= 0) & (steps < self._num_steps)
        if not inside.any():
            return np.full((_CHUNK, POWERS_IN_STEP), np.nan)
        samples = read_padded(self._listen, start * per_step, (start + _CHUNK) * per_step)
        powers = np.square(samples.reshape(_CHUNK, POWERS_IN_STEP, -1)).mean(2, dtype=np.float64)
        return np.where(inside[:, None], powers, np.nan)


class VoiceLevel(PassageLevel):
    """The same of a text's voice: from what it has said until then, so that it may still be speaking.

    A voice has no noise, and hardly changes its loudness: what comes next is not needed to judge it.
    """

    def __init__(self, listen: Listen, num_samples: int) -> None:
        """num_samples: VOICE_SAMPLES, or the speech's length if it is shorter."""
        super().__init__(listen, num_samples)
        self._num_steps = sys.maxsize  # silence follows the end
        self._step = lru_cache(maxsize=256)(self._step_db)

    def _levels_db(self, first: int, last: int) -> np.ndarray:
        return np.array([self._step(step) for step in range(first, last)])

    def _step_db(self, step: int) -> float:
        past = self._powers(step - CONTEXT, step + 1)
        future = np.full((CONTEXT, POWERS_IN_STEP), np.nan)
        return float(levels_db(np.concatenate([past, future]), self._whole_db)[0][0])


def levels_db(powers: np.ndarray, whole_db: float) -> tuple[np.ndarray, np.ndarray]:
    """The level of each step in dBFS, and whether it is speech; (n - 2 CONTEXT,) each.

    powers: mean squares of 20 ms windows, (n, POWERS_IN_STEP), NaN where unknown. whole_db: overall level.
    """
    floor_db = max(whole_db - _RANGE_DB, _FLOOR_DB)
    decibels = 10 * np.log10(powers + 1e-16)
    loudness = _loud_db(powers, _NEAR)[_NOISE:-_NOISE]
    noise = _noise_db(np.where(decibels > _SILENCE_DB, decibels, np.nan), _NOISE)[_NEAR:-_NEAR]
    speaking = (loudness > noise + _RISE_DB) & (loudness > floor_db)
    here = loudness[_REACH:-_REACH, None]
    around = np.lib.stride_tricks.sliding_window_view(loudness, 2 * _REACH + 1)
    spoken = np.lib.stride_tricks.sliding_window_view(speaking, 2 * _REACH + 1)
    distance = np.arange(-_REACH, _REACH + 1) / _REACH_SIGMA
    near = spoken * np.exp(-0.5 * distance**2)
    alike = np.clip((_UNLIKE_DB - np.abs(around - here)) / (_UNLIKE_DB - _ALIKE_DB), 0, 1)
    passage, neighbours = near * alike, near.sum(1)
    own = (passage * around).sum(1) / np.maximum(passage.sum(1), 1e-9)
    held = ((near * around).sum(1) + _WHOLE_WEIGHT * whole_db) / (neighbours + _WHOLE_WEIGHT)
    lasting = np.clip(((spoken * alike).sum(1) - _SHORT) / (_LONG - _SHORT), 0, 1)
    share = np.where(speaking[_REACH:-_REACH], lasting, 0.0)
    quiet = np.maximum(held, here[:, 0])  # noise louder than speech must not be amplified further
    return np.maximum(share * own + (1 - share) * quiet, floor_db), speaking[_REACH:-_REACH]


def _windows(values: np.ndarray, reach: int) -> np.ndarray:
    """The values of each step and of `reach` steps on either side, sorted, NaN last: (steps - 2 reach, n)."""
    windows = np.lib.stride_tricks.sliding_window_view(values, 2 * reach + 1, axis=0)
    return np.sort(windows.reshape(len(windows), -1), axis=1)


def _loud_db(powers: np.ndarray, reach: int) -> np.ndarray:
    """Loudness of the loud part around each step, in dBFS; see `visemes.speech_level`."""
    windows = _windows(np.nan_to_num(powers), reach)
    loud = windows[:, int(windows.shape[1] * (1 - LOUD_SHARE)) :]
    return 10 * np.log10(loud.mean(1) + 1e-16)


def _noise_db(decibels: np.ndarray, reach: int) -> np.ndarray:
    """Upper level of the quietest _NOISE_SHARE around each step, in dBFS; _SILENCE_DB without any sound."""
    windows = _windows(decibels, reach)
    places = ((~np.isnan(windows)).sum(1) * _NOISE_SHARE).astype(int)
    return np.nan_to_num(windows[np.arange(len(windows)), places], nan=_SILENCE_DB)
