"""A synthetic portrait and synthetic speech, to time or try an engine without a user's files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from avatar.geometry import SPEECH_HZ, Size

SYLLABLES_HZ = 4.0
PITCH_HZ = 130.0


def write_sample(folder: Path, size: Size, seconds: float, seed: int = 0) -> tuple[Path, Path]:
    """Write portrait.png (blurred colours) and speech.wav (babble); the same at every call.

    seed: of the portrait.
    """
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (12, 12, 3), np.uint8))
    portrait, speech = folder / "portrait.png", folder / "speech.wav"
    coarse.resize((size.width, size.height), Image.Resampling.BICUBIC).save(portrait)
    soundfile.write(speech, babble(round(seconds * SPEECH_HZ)), SPEECH_HZ)
    return portrait, speech


def babble(num_samples: int) -> np.ndarray:
    """A hum that opens and closes like syllables, with some breath; float32 at 16 kHz, peak 0.4."""
    t = np.arange(num_samples) / SPEECH_HZ
    syllables = np.abs(np.sin(np.pi * SYLLABLES_HZ * t))
    breath = 0.02 * np.random.default_rng(1).normal(size=num_samples)
    sound = np.sin(2 * np.pi * PITCH_HZ * t) * syllables + breath
    return (0.4 * sound / np.abs(sound).max()).astype(np.float32)
