"""Measure the offset of the synthesisers' phoneme times from their sound, which `generate.SHIFT_S` corrects.

    python -m training.align DATA

For each voice, report the shift of its labels at which vowels fit loud sound best, and sibilants hissing
sound. With the right SHIFT_S, all are within about a frame (10 ms) of zero.
"""

import argparse
import logging
from itertools import groupby
from pathlib import Path

import numpy as np

from avatar.preview.visemes import FRAME_HZ, NUM_MELS, VISEMES, log_mels
from training.evaluate import correlation
from training.sentences import Sentence, load

logger = logging.getLogger(__name__)

REACH = 10  # largest shift to try, in frames
SENTENCES = 100  # per voice

VOWELS = [VISEMES.index(name) for name in ("aa", "E", "ih", "oh", "ou")]
SIBILANTS = [VISEMES.index(name) for name in ("CH", "SS")]
# Mel bands of voiced sound, of its lowest part, and of hiss.
_VOICE, _LOW, _HISS = slice(4, 22), slice(3, 12), slice(33, NUM_MELS)


def offsets(sentences: list[Sentence]) -> tuple[float, float]:
    """Return the best shift of the labels in seconds, by vowels and by sibilants; nan without any."""
    fits = np.zeros((2, 2 * REACH + 1))
    for sentence in sentences:
        mels = log_mels(sentence.listen, 0, len(sentence.labels), sentence.level)
        loud, hiss = mels[:, _VOICE].mean(1), mels[:, _HISS].mean(1) - mels[:, _LOW].mean(1)
        for row, (classes, sound) in enumerate(((VOWELS, loud), (SIBILANTS, hiss))):
            present = np.isin(sentence.labels, classes).astype(float)
            middle = slice(REACH, len(present) - REACH)
            if not present[2 * REACH : -2 * REACH].any():
                continue
            for column, shift in enumerate(range(-REACH, REACH + 1)):
                fits[row, column] += correlation(np.roll(present, shift)[middle], sound[middle])
    vowels, sibilants = (_peak(row) / FRAME_HZ if row.any() else float("nan") for row in fits)
    return vowels, sibilants


def _peak(fit: np.ndarray) -> float:
    """Return the position of the maximum of a curve over -REACH..REACH, interpolated by a parabola."""
    index = int(np.clip(fit.argmax(), 1, len(fit) - 2))
    before, at, after = fit[index - 1 : index + 2]
    return index - REACH + 0.5 * (before - after) / (before - 2 * at + after)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder that training.generate filled")
    data = parser.parse_args().data
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for folder in ("train", "held_out"):
        for voice, group in groupby(load(data / folder), key=lambda sentence: sentence.voice):
            vowels, sibilants = offsets(list(group)[:SENTENCES])
            logger.info("%s: vowels %+.0f ms, sibilants %+.0f ms", voice, 1000 * vowels, 1000 * sibilants)


if __name__ == "__main__":
    main()
