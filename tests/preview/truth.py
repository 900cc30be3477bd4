"""Short clips whose phonemes are known, and the mouth that they ought to drive.

18 clips by voices that the network never heard: flite's awb, Kokoro's jm_kumo, espeak-ng in two languages.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import soundfile

from avatar.geometry import FPS, SPEECH_HZ
from avatar.preview.articulation import VISUAL_LEAD_S, loudness_db
from avatar.preview.visemes import FRAME_HZ, VISEMES
from training.evaluate import OPEN, ROUND, WIDE, bilabials, true_curves
from training.sentences import Sentence

FOLDER = Path(__file__).parents[1] / "data" / "speech"


@dataclass(frozen=True)
class Clip:
    """One clip. name: of its FLAC. sentence: its sound at 16 kHz and viseme labels at 100 Hz."""

    name: str
    sentence: Sentence

    @property
    def path(self) -> Path:
        """The clip as a FLAC file, 16 kHz mono."""
        return FOLDER / f"{self.name}.flac"

    @property
    def num_frames(self) -> int:
        """Whole video frames that the clip lasts."""
        return len(self.sentence.samples) * FPS // SPEECH_HZ

    @cached_property
    def curves(self) -> np.ndarray:
        """The mouth that the true visemes drive, (T, KEYS) at 100 Hz, in time with the sound."""
        loudness = loudness_db(self.sentence.listen, 0, len(self.sentence.labels), self.sentence.level)
        return true_curves(self.sentence.labels, loudness)

    @property
    def opening(self) -> np.ndarray:
        """The true opening of the mouth, (num_frames,), in time with the sound."""
        return self._at_frames(self.curves[:, OPEN])

    @property
    def width(self) -> np.ndarray:
        """The true width of the lips less their rounding, (num_frames,), in time with the sound."""
        return self._at_frames(self.curves[:, WIDE] - self.curves[:, ROUND])

    @property
    def opening_with_lead(self) -> np.ndarray:
        """The true opening as a video shows it, (num_frames,): ahead of the sound by the visual lead."""
        return self._at_frames(self.curves[:, OPEN], VISUAL_LEAD_S)

    @property
    def bilabials_s(self) -> list[tuple[float, float]]:
        """Start and end of each p, b and m, seconds of sound; lips meet there (the visual lead earlier)."""
        return [(start / FRAME_HZ, stop / FRAME_HZ) for start, stop in bilabials(self.sentence.labels)]

    def _at_frames(self, curve: np.ndarray, lead_s: float = 0.0) -> np.ndarray:
        times = (np.arange(self.num_frames) / FPS + lead_s) * FRAME_HZ
        return np.interp(times, np.arange(len(curve)), curve)


def clips() -> list[Clip]:
    """Read all clips, in order of name."""
    truth = json.loads((FOLDER / "truth.json").read_text("utf-8"))
    return [Clip(name, _read(name, clip["voice"], clip["visemes"])) for name, clip in sorted(truth.items())]


def _read(name: str, voice: str, runs: list[tuple[str, int]]) -> Sentence:
    samples, rate_hz = soundfile.read(FOLDER / f"{name}.flac", dtype="float32")
    assert rate_hz == SPEECH_HZ
    labels = np.concatenate([np.full(frames, VISEMES.index(viseme)) for viseme, frames in runs])
    return Sentence(voice, samples, labels)
