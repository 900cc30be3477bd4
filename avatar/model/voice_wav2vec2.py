"""wav2vec2 on a text's voice, which may still be speaking: the same features whether it has ended or goes on.

A speech that fits one window is heard whole, like a recording. Of a longer one the first frame needs one
window, and each later window needs its margin. What only the end could tell is taken otherwise: mean and
deviation are those of the first window, since a voice hardly changes its loudness, and features are
interpolated at the nominal rates, which moves none by more than 14 ms.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from avatar.geometry import AUDIO_FEATURE_HZ, FPS, LEAD_IN_FRAMES, SPEECH_HZ, audio_indices
from avatar.model.wav2vec2 import HIDDEN_HZ, MARGIN_S, WINDOW_S, Listen, SpeechEncoder, SpeechFeatures

Until = Callable[[int], int]
"""How many samples there are at 16 kHz, once there are this many, or no more come."""

_LEAD = LEAD_IN_FRAMES * SPEECH_HZ // FPS


class VoiceFeatures:
    """Features for any run of video frames, as in SpeechFeatures; frames() waits for what it needs."""

    def __init__(
        self,
        encoder: SpeechEncoder,
        listen: Listen,
        until: Until,
        window_s: float = WINDOW_S,
        margin_s: float = MARGIN_S,
    ) -> None:
        self._encoder, self._listen, self._until = encoder, listen, until
        self._window_s, self._margin_s = window_s, margin_s
        self._most = encoder.num_samples(int(window_s * HIDDEN_HZ) + 1) - _LEAD  # more than fits one window
        self._features: SpeechFeatures | None = None

    def needs(self, start: int, num_frames: int) -> int:
        """Number of speech samples that frames start, start + 1, … require, unless there are fewer."""
        if isinstance(self._features, _LongVoice):
            return self._features.needs(start, num_frames)
        return self._most

    def frames(self, start: int, num_frames: int) -> Tensor:
        """See SpeechFeatures.frames."""
        if self._features is None:
            encoder, windows = self._encoder, (self._window_s, self._margin_s)
            there = self._until(self._most)
            if there < self._most:
                self._features = SpeechFeatures(encoder, self._listen, there, *windows)
            else:
                self._features = _LongVoice(encoder, self._listen, self._most, *windows)
        if isinstance(self._features, _LongVoice):
            self._features.extend(self._until(self._features.needs(start, num_frames)))
        return self._features.frames(start, num_frames)


class _LongVoice(SpeechFeatures):
    """Features of a voice that speaks for longer than a window; of its end nothing is known at first."""

    def needs(self, start: int, num_frames: int) -> int:
        """See VoiceFeatures.needs."""
        hidden = int(audio_indices(start + num_frames)[-1] * HIDDEN_HZ / AUDIO_FEATURE_HZ) + 1
        core = hidden // self._core * self._core
        return self._encoder.num_samples(core + self._core + self._margin + 2) - self._lead

    def extend(self, num_samples: int) -> None:
        """There are this many samples by now."""
        self._total = num_samples + self._lead
        self.num_hidden = self._encoder.num_hidden(self._total)
        self.num_features = max(int(self.num_hidden / HIDDEN_HZ * AUDIO_FEATURE_HZ), 1)

    def _place(self, index: int) -> tuple[int, int, float]:
        place = index * HIDDEN_HZ / AUDIO_FEATURE_HZ
        low = min(int(place), self.num_hidden - 1)
        return low, min(low + 1, self.num_hidden - 1), place - int(place)
