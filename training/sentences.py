"""Generated speech on disk and in memory."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from avatar.preview.visemes import Listen, speech_level


@dataclass(frozen=True, slots=True)
class Sentence:
    """One utterance: samples (n,) float32 at SPEECH_HZ, labels (n // HOP,) int64 viseme indices."""

    voice: str
    samples: np.ndarray
    labels: np.ndarray

    @property
    def listen(self) -> Listen:
        """The speech as a `Listen`, the network's input."""
        return lambda start, stop: self.samples[start:stop]

    @property
    def level(self) -> float:
        """The speech's level, see `visemes.speech_level`."""
        return speech_level(self.listen, len(self.samples))


def load(folder: Path) -> list[Sentence]:
    """Load all sentences that `generate` wrote into a folder, by name.

    Raises: FileNotFoundError when there are none.
    """
    sentences = []
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as data:
            samples, labels = data["samples"].astype(np.float32) / 32768, data["labels"].astype(np.int64)
        sentences.append(Sentence(path.stem.rpartition("_")[0], samples, labels))
    if not sentences:
        raise FileNotFoundError(f"no speech in {folder}: run training.generate first")
    return sentences
