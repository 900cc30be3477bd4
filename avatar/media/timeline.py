"""The audio of an open-ended session: append-only, indexed by absolute sample; old samples are dropped."""

from __future__ import annotations

import numpy as np

from avatar.geometry import FPS, SOUND_HZ, SPEECH_HZ

SAMPLES_PER_FRAME = SOUND_HZ // FPS
DECIMATION = SOUND_HZ // SPEECH_HZ
_TAPS = 24  # of the low-pass filter on either side: half a millisecond
_CUTOFF = 0.9 / DECIMATION  # of the Nyquist frequency at SOUND_HZ


class Timeline:
    """A session's audio and clock, in samples since the beginning. Memory holds the last `keep_s` seconds.

    The 16 kHz input of engines lags behind the sound by the filter's half-length: see `num_heard`.
    """

    def __init__(self, keep_s: float = 12.0) -> None:
        self._sound = _Ring(round(keep_s * SOUND_HZ), np.int16)
        self._heard = _Ring(round(keep_s * SPEECH_HZ), np.float32)
        self._tail = np.zeros(_TAPS, np.float32)  # filter input: before the next 16 kHz sample, and after it

    @property
    def num_samples(self) -> int:
        """Samples received so far, at SOUND_HZ."""
        return self._sound.stop

    @property
    def num_heard(self) -> int:
        """Samples available so far, at SPEECH_HZ."""
        return self._heard.stop

    @property
    def num_held(self) -> int:
        """Capacity in samples, of both rates together."""
        return self._sound.num_held + self._heard.num_held

    def append(self, samples: np.ndarray) -> None:
        """samples: int16 (n,) at SOUND_HZ."""
        self._sound.append(samples)
        known = np.concatenate([self._tail, samples.astype(np.float32) / np.float32(32768)])
        count = max(0, (len(known) - 2 * _TAPS - 1) // DECIMATION + 1)
        if count:
            self._heard.append(np.convolve(known, _LOW_PASS, "valid")[::DECIMATION][:count])
        self._tail = known[count * DECIMATION :]

    def sound(self, start: int, stop: int) -> np.ndarray:
        """Samples start..stop, int16 (n,) at SOUND_HZ.

        Raises: LookupError for samples already dropped or not yet received.
        """
        return self._sound.read(start, stop)

    def listen(self, start: int, stop: int) -> np.ndarray:
        """Samples start..stop, float32 (n,) at SPEECH_HZ in -1..1; silence before the beginning.

        Raises: LookupError for samples already dropped or not yet received.
        """
        heard = self._heard.read(max(start, 0), max(stop, 0))
        return np.concatenate([np.zeros(min(max(-start, 0), stop - start), np.float32), heard])


def _low_pass() -> np.ndarray:
    places = np.arange(-_TAPS, _TAPS + 1)
    taps = np.sinc(places * _CUTOFF) * np.hamming(len(places))
    return (taps / taps.sum()).astype(np.float32)


_LOW_PASS = _low_pass()


class _Ring:
    """Buffer of the last `keep` samples, by absolute position; holds twice as many, to move data rarely."""

    def __init__(self, keep: int, kind: type[np.generic]) -> None:
        self._keep = keep
        self._held = np.zeros(2 * keep, kind)
        self._first = self.stop = 0  # absolute positions of the held samples

    @property
    def num_held(self) -> int:
        return len(self._held)

    def append(self, samples: np.ndarray) -> None:
        for piece in np.split(samples, range(self._keep, len(samples), self._keep)):
            if self.stop - self._first + len(piece) > len(self._held):
                kept = self.read(self.stop - self._keep, self.stop).copy()
                self._held[: len(kept)] = kept
                self._first = self.stop - len(kept)
            at = self.stop - self._first
            self._held[at : at + len(piece)] = piece
            self.stop += len(piece)

    def read(self, start: int, stop: int) -> np.ndarray:
        if not self._first <= start <= stop <= self.stop:
            raise LookupError(f"samples {start}..{stop} of {self._first}..{self.stop}")
        return self._held[start - self._first : stop - self._first]
