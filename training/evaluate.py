"""Evaluate a viseme network on voices that training never used, by the mouth that it drives.

    python -m training.evaluate DATA [--weights WEIGHTS.npz] [--sentences 24]

The ground truth is the mouth driven by the synthesisers' own phoneme times, through the same articulation.
"""

import argparse
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from itertools import groupby
from pathlib import Path

import numpy as np

from avatar.geometry import SPEECH_HZ
from avatar.preview.articulation import KEYS, loudness_db, mouth_curves
from avatar.preview.visemes import FRAME_HZ, VISEMES, VisemeNetwork
from training.sentences import Sentence, load

logger = logging.getLogger(__name__)

OPEN, WIDE, ROUND = (KEYS.index(key) for key in ("open", "wide", "round"))
# Lips less than CLOSED_OPEN apart count as closed. Frames whose truth is above VOWEL_OPEN are open vowels,
# and are missed if the driven mouth is below MISSED_OPEN.
CLOSED_OPEN, VOWEL_OPEN, MISSED_OPEN = 0.15, 0.60, 0.20
# A closure may lie this many frames outside its phoneme on either side.
CLOSURE_MARGIN = 3
# A closure counts if its phoneme lasts CLOSURE_FRAMES and is EDGE_FRAMES away from the ends.
CLOSURE_FRAMES, EDGE_FRAMES = 3, 10


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of one sentence.

    visemes: share of correct frames. jaw, lips: correlation with the truth of opening, and of width minus
    rounding. phonetic_jaw: of opening with a truth that ignores loudness. closures: share of bilabials where
    the lips close. missed: share of open vowels' frames in which the mouth stays shut.
    """

    visemes: float
    jaw: float
    phonetic_jaw: float
    lips: float
    closures: float
    missed: float


def true_curves(labels: np.ndarray, loudness: np.ndarray) -> np.ndarray:
    """Return the articulation (T, KEYS) driven by known visemes (T,), without visual lead."""
    certain = np.eye(len(VISEMES), dtype=np.float32)[labels]
    return mouth_curves(certain, loudness)


def driven_curves(network: VisemeNetwork, sentence: Sentence, loudness: np.ndarray) -> np.ndarray:
    """Return the articulation (T, KEYS) driven by the network, without visual lead."""
    probabilities = network.probabilities(sentence.listen, 0, len(sentence.labels), sentence.level)
    return mouth_curves(probabilities, loudness)


def bilabials(labels: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) frames of each p, b or m that counts."""
    start = 0
    for label, run in groupby(labels.tolist()):
        stop = start + len(list(run))
        if (
            label == VISEMES.index("PP")
            and stop - start >= CLOSURE_FRAMES
            and start > EDGE_FRAMES
            and stop < len(labels) - EDGE_FRAMES
        ):
            yield start, stop
        start = stop


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return Pearson's r of two series over their common length."""
    length = min(len(a), len(b))
    return float(np.corrcoef(a[:length], b[:length])[0, 1])


def score(network: VisemeNetwork, sentence: Sentence) -> Scores:
    """Score the mouth that the network drives for one sentence."""
    labels = sentence.labels
    loudness = loudness_db(sentence.listen, 0, len(labels), sentence.level)
    probabilities = network.probabilities(sentence.listen, 0, len(labels), sentence.level)
    truth, driven = true_curves(labels, loudness), mouth_curves(probabilities, loudness)
    phonetic = true_curves(labels, np.zeros_like(loudness))
    opening = driven[:, OPEN]
    met = [
        opening[max(0, start - CLOSURE_MARGIN) : stop + CLOSURE_MARGIN].min() < CLOSED_OPEN
        for start, stop in bilabials(labels)
    ]
    vowels = truth[:, OPEN] > VOWEL_OPEN
    return Scores(
        visemes=float((probabilities.argmax(1) == labels).mean()),
        jaw=correlation(truth[:, OPEN], opening),
        phonetic_jaw=correlation(phonetic[:, OPEN], opening),
        lips=correlation(truth[:, WIDE] - truth[:, ROUND], driven[:, WIDE] - driven[:, ROUND]),
        closures=float(np.mean(met)) if met else float("nan"),
        missed=float((opening[vowels] < MISSED_OPEN).mean()) if vowels.any() else float("nan"),
    )


def non_speech() -> dict[str, np.ndarray]:
    """Return sounds for which the mouth must stay shut, four seconds each, (n,) float32 at SPEECH_HZ."""
    count = 4 * SPEECH_HZ
    rng, t = np.random.default_rng(0), np.arange(count) / SPEECH_HZ
    sounds = {
        "silence": np.zeros(count),
        "room noise": rng.normal(0, 0.003, count),
        "loud noise": rng.normal(0, 0.1, count),
        "rumble": np.cumsum(rng.normal(0, 1e-3, count)) * np.hanning(count),
        "tone": 0.2 * np.sin(2 * np.pi * 220 * t),
        "mains hum": 0.02 * np.sin(2 * np.pi * 50 * t) + 0.01 * np.sin(2 * np.pi * 100 * t),
    }
    return {name: sound.astype(np.float32) for name, sound in sounds.items()}


def widest_opening(network: VisemeNetwork, samples: np.ndarray) -> float:
    """Return the widest opening of the mouth during a sound."""
    sound = Sentence("", samples, np.zeros(len(samples) * FRAME_HZ // SPEECH_HZ, np.int64))
    loudness = loudness_db(sound.listen, 0, len(sound.labels), sound.level)
    return float(driven_curves(network, sound, loudness)[:, OPEN].max())


def report(network: VisemeNetwork, sentences: list[Sentence], write: Callable[[str], None]) -> None:
    """Write a table of mean scores per voice, then the widest openings for sounds that are not speech."""
    names = [field.name for field in fields(Scores)]
    write("| voice | sentences | " + " | ".join(names) + " |")
    write("|---" * (len(names) + 2) + "|")
    started, seconds = time.perf_counter(), 0.0
    for voice, group in groupby(sentences, key=lambda sentence: sentence.voice):
        members = list(group)
        table = np.array([[getattr(score(network, member), name) for name in names] for member in members])
        seconds += sum(len(member.samples) for member in members) / SPEECH_HZ
        write(f"| {voice} | {len(members)} | " + " | ".join(f"{x:.2f}" for x in np.nanmean(table, 0)) + " |")
    write(f"{seconds / (time.perf_counter() - started):.0f} times real time, scoring included")
    for name, samples in non_speech().items():
        write(f"widest opening on {name}: {widest_opening(network, samples):.3f}")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder that training.generate filled")
    parser.add_argument("--weights", type=Path, help=".npz to judge; without it, the package's own")
    parser.add_argument("--sentences", type=int, default=24, help="at most so many of each voice")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if arguments.weights is None:
        network = VisemeNetwork.load()
    else:
        with arguments.weights.open("rb") as file:
            network = VisemeNetwork.load(file)
    voices = groupby(load(arguments.data / "held_out"), key=lambda sentence: sentence.voice)
    chosen = [sentence for _, group in voices for sentence in list(group)[: arguments.sentences]]
    report(network, chosen, logger.info)


if __name__ == "__main__":
    main()
