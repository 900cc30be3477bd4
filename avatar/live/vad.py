"""Voice activity detection with Silero's model, 32 ms at a time.

Source: snakers4/silero-vad version 6 (MIT), model in avatar/assets, with its own thresholds.
"""

from __future__ import annotations

import importlib.resources
from typing import Any

import numpy as np

from avatar.media.onnx import open_onnx

CHUNK = 512  # samples at SPEECH_HZ
_CONTEXT = 64  # samples before a chunk that the model also sees
_STATE = (1, 1, 128)

BEGINS, GOES_ON = 0.5, 0.35  # probabilities at which speech starts and continues
SUSPECTED = 3  # consecutive chunks: 100 ms; whoever is interrupted falls silent until it is known
LEAST_SPEECH = 6  # consecutive chunks: 190 ms; less is a cough or a click
PAUSE = 18  # chunks without speech that end a sentence: 580 ms


class VoiceProbability:
    """Estimates the probability of speech in each chunk; the model's state carries over."""

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
    """Finds turns to speak from the chunks' probabilities."""

    def __init__(self) -> None:
        self.is_speaking = False
        self._run = 0  # consecutive chunks that indicate a change

    @property
    def is_suspected(self) -> bool:
        """Whether somebody may have begun to speak."""
        return not self.is_speaking and self._run >= SUSPECTED

    def note(self, probability: float) -> str:
        """Take the next chunk's probability; return "begins", "ends" or "" for no change."""
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
