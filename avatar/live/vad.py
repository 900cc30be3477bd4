"""When somebody speaks: Silero's voice activity detector, 32 ms at a time.

Source: snakers4/silero-vad version 6 (MIT), whose model lies in avatar/assets; the thresholds are its own.
"""

from __future__ import annotations

import importlib.resources
from typing import Any

import numpy as np

from avatar.media.onnx import open_onnx

CHUNK = 512  # samples at SPEECH_HZ
_CONTEXT = 64  # samples before a chunk that the model sees, too
_STATE = (1, 1, 128)

BEGINS, GOES_ON = 0.5, 0.35  # probabilities
LEAST_SPEECH = 6  # chunks in a row: 190 ms; less is a cough or a click
PAUSE = 18  # chunks without speech that end a sentence: 580 ms


class VoiceProbability:
    """How likely each chunk is speech; it remembers those before."""

    def __init__(self) -> None:
        model = (importlib.resources.files("avatar") / "assets" / "silero_vad.onnx").read_bytes()
        self._model: Any = open_onnx(model, threads=1)
        self._h = self._c = np.zeros(_STATE, np.float32)
        self._context = np.zeros(_CONTEXT, np.float32)

    def __call__(self, chunk: np.ndarray) -> float:
        """chunk: float32 (CHUNK,) in -1..1."""
        seen = np.concatenate([self._context, chunk])[None].astype(np.float32)
        probability, self._h, self._c = self._model.run(None, {"input": seen, "h": self._h, "c": self._c})
        self._context = chunk[-_CONTEXT:].astype(np.float32)
        return float(probability.reshape(-1)[0])


class Turns:
    """Somebody's turns to speak, from probabilities of chunks; what it says is "", "begins" or "ends"."""

    def __init__(self) -> None:
        self.is_speaking = False
        self._run = 0  # chunks in a row that speak for a change

    def note(self, probability: float) -> str:
        """The next chunk's."""
        if not self.is_speaking:
            self._run = self._run + 1 if probability >= BEGINS else 0
            if self._run < LEAST_SPEECH:
                return ""
        else:
            self._run = self._run + 1 if probability < GOES_ON else 0
            if self._run < PAUSE:
                return ""
        self.is_speaking, self._run = not self.is_speaking, 0
        return "begins" if self.is_speaking else "ends"
