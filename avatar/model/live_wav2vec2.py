"""wav2vec2 on live speech: a rolling window, a short look-ahead, running normalisation.

A pass over the whole speech knows its mean and deviation, and every layer attends to all of it. This module
approximates that from `WINDOW_S` of the past and `LOOK_AHEAD_S` of the future. A frame's features depend only
on its position, not on when they are requested.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from avatar.geometry import AUDIO_FEATURE_HZ, FPS, LEAD_IN_FRAMES, SPEECH_HZ, audio_indices
from avatar.model.wav2vec2 import HIDDEN_HZ, NORMALISE_EPS, Listen, SpeechEncoder

WINDOW_S = 8.0  # encoded at once; most of it is past speech
LOOK_AHEAD_S = 0.4  # beyond the end of the last requested frame

_STEP = SPEECH_HZ // 10  # samples per update of the level
_SPOKEN_RMS = 10 ** (-50 / 20)  # quieter steps are ignored, or silence would be amplified into noise
_TYPICAL_POWER = 10 ** (-26 / 10)  # of speech with its pauses: the initial estimate
_TYPICAL_STEPS, _MEMORY_STEPS = 10.0, 300.0  # the initial estimate's weight; the averaging window


class RunningLevel16k:
    """Running mean and standard deviation of a voice at 16 kHz."""

    def __init__(self, listen: Listen) -> None:
        self._listen, self._next = listen, 0
        self._weight, self._mean, self._power = _TYPICAL_STEPS, 0.0, _TYPICAL_POWER

    def at(self, stop: int) -> tuple[float, float]:
        """Mean and deviation after the last whole step before sample `stop`; call in ascending order."""
        while (self._next + 1) * _STEP <= stop:
            piece = self._listen(self._next * _STEP, (self._next + 1) * _STEP).astype(np.float64)
            self._next += 1
            power = float(np.square(piece).mean())
            if power < _SPOKEN_RMS**2:
                continue
            self._weight = min(self._weight + 1.0, _MEMORY_STEPS)
            self._mean += (float(piece.mean()) - self._mean) / self._weight
            self._power += (power - self._power) / self._weight
        return self._mean, float(np.sqrt(max(self._power - self._mean**2, 0.0) + NORMALISE_EPS))


class LiveSpeechFeatures:
    """Features for any run of video frames, as in SpeechFeatures, but for endless speech.

    listen: returns silence before the speech; it is never called for anything older than `window_s` before
    the end of a frame's look-ahead. Request frames in ascending order.
    """

    def __init__(
        self,
        encoder: SpeechEncoder,
        listen: Listen,
        window_s: float = WINDOW_S,
        look_ahead_s: float = LOOK_AHEAD_S,
    ) -> None:
        self._encoder, self._listen = encoder, listen
        self._window = round(window_s * HIDDEN_HZ)
        self._ahead = round(look_ahead_s * SPEECH_HZ)
        self._lead = LEAD_IN_FRAMES * SPEECH_HZ // FPS
        self._level = RunningLevel16k(listen)

    def needs(self, start: int, num_frames: int) -> int:
        """Number of speech samples that frames start, start + 1, … require."""
        return (start + num_frames) * SPEECH_HZ // FPS - self._lead + self._ahead

    def frames(self, start: int, num_frames: int) -> Tensor:
        """Features of video frames start, start + 1, …: L D num_frames."""
        encoder, stop = self._encoder, self.needs(start, num_frames)
        num_hidden = encoder.num_hidden(stop + self._lead)  # counted from the start of the lead-in
        begin = max(num_hidden - self._window, 0)
        sample = begin * encoder.stride - self._lead
        mean, std = self._level.at(stop) if encoder.normalise else (0.0, 1.0)
        samples = (self._listen(sample, stop).astype(np.float64) - mean) / std
        states = encoder.encode(torch.from_numpy(samples.astype(np.float32)))  # L T D
        places = audio_indices(start + num_frames, start=start) * (HIDDEN_HZ / AUDIO_FEATURE_HZ) - begin
        low = np.clip(places.astype(int), 0, states.shape[1] - 2)
        weight = torch.from_numpy(np.clip(places - low, 0.0, 1.0)).to(states)[None, :, None]
        found = torch.lerp(states[:, low], states[:, low + 1], weight.expand_as(states[:, low]))
        return found.permute(0, 2, 1)
