"""Evaluate a viseme network on recordings of people, with known words but unknown times.

    python -m training.people assets/speech [--weights WEIGHTS.npz]

Each recording is aligned, frame by frame, with the phonemes of its text and, as a control, of other texts:
if the network works on people, the right text fits clearly better. Phonemes come from espeak-ng.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

from avatar.geometry import SPEECH_HZ
from avatar.preview.articulation import loudness_db, mouth_curves
from avatar.preview.visemes import HOP, VISEMES, VisemeNetwork
from training.evaluate import CLOSED_OPEN, CLOSURE_MARGIN, OPEN
from training.phonemes import COPY_NEXT
from training.sentences import Sentence
from training.voices import Espeak

logger = logging.getLogger(__name__)

# espeak-ng's voice for each recording's language, and the recording's text.
TEXTS = {
    "echo-test-en": (
        "en-us",
        "You are about to enter an echo test. In this mode everything you say will be repeated back to you "
        "just as soon as it is received. The purpose of this test is to give you an audible sense of the "
        "latency between you and the machine that is running the echo test application.",
    ),
    "bienvenue-fr": (
        "fr",
        "Félicitations, vous avez bien installé et exécuté le projet libre Asterisk. Vous avez aussi "
        "installé quelques fichiers audio et les fichiers de configuration qui devraient vous aider à "
        "démarrer. Comme avec tout central téléphonique, vous naviguerez dans cette démonstration en "
        "appuyant sur les chiffres.",
    ),
}
_SILENCE, _BILABIAL = VISEMES.index("sil"), VISEMES.index("PP")


def visemes_of(engine: Espeak, voice: str, text: str) -> list[int]:
    """Return the visemes of a text in order, silence, repeats and /h/ left out."""
    order: list[int] = []
    for segment in engine.speak(voice, text, words_per_minute=170, pitch=50).segments:
        if segment.viseme in (COPY_NEXT, "sil"):
            continue
        if not order or order[-1] != VISEMES.index(segment.viseme):
            order.append(VISEMES.index(segment.viseme))
    return order


def align(log_probabilities: np.ndarray, order: Sequence[int]) -> tuple[float, np.ndarray]:
    """Find the most likely times of visemes in a known order, each one frame or more, with optional pauses.

    log_probabilities: (T, visemes). Returns the mean log-probability per frame, and per frame (T,) its index
    in the sequence silence, order[0], silence, order[1], .., silence. Source: Viterbi's algorithm.
    """
    states = [_SILENCE]
    for viseme in order:
        states += [viseme, _SILENCE]
    emitted = log_probabilities[:, states]
    optional = np.arange(len(states)) % 2 == 0
    best = np.full(len(states), -np.inf)
    best[:2] = emitted[0, :2]
    back = np.zeros(emitted.shape, np.int8)
    for frame in range(1, len(emitted)):
        stay, step = best, np.concatenate([[-np.inf], best[:-1]])
        skip = np.where(optional, -np.inf, np.concatenate([[-np.inf] * 2, best[:-2]]))  # over a pause
        choices = np.stack([stay, step, skip])
        back[frame] = choices.argmax(0)
        best = choices.max(0) + emitted[frame]
    place = len(states) - 1 - int(best[-1] < best[-2])
    likelihood, places = float(best[place]) / len(emitted), [place]
    for frame in range(len(emitted) - 1, 0, -1):
        place -= int(back[frame, place])
        places.append(place)
    return likelihood, np.array(places[::-1])


def judge(network: VisemeNetwork, recording: Sentence, order: Sequence[int]) -> tuple[float, float, float]:
    """Return the fit to a text: mean log-probability, share of agreeing frames, share of closed bilabials."""
    count = len(recording.samples) // HOP
    probabilities = network.probabilities(recording.listen, 0, count, recording.level)
    likelihood, places = align(np.log(probabilities + 1e-4), order)
    labels = np.where(places % 2 == 0, _SILENCE, np.array(order)[np.minimum(places // 2, len(order) - 1)])
    loudness = loudness_db(recording.listen, 0, count, recording.level)
    opening = mouth_curves(probabilities, loudness)[:, OPEN]
    closed = []
    for place in np.unique(places[labels == _BILABIAL]):
        frames = np.flatnonzero(places == place)
        around = opening[max(0, frames[0] - CLOSURE_MARGIN) : frames[-1] + 1 + CLOSURE_MARGIN]
        closed.append(around.min() < CLOSED_OPEN)
    return likelihood, float((probabilities.argmax(1) == labels).mean()), float(np.mean(closed))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder of the recordings")
    parser.add_argument("--weights", type=Path, help=".npz to judge; without it, the package's own")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if arguments.weights is None:
        network = VisemeNetwork.load()
    else:
        with arguments.weights.open("rb") as file:
            network = VisemeNetwork.load(file)
    engine = Espeak()
    orders = {name: visemes_of(engine, voice, text) for name, (voice, text) in TEXTS.items()}
    for name in TEXTS:
        samples, rate_hz = soundfile.read(arguments.folder / f"{name}.flac", dtype="float32")
        if rate_hz != SPEECH_HZ or samples.ndim != 1:
            parser.error(f"{name}.flac is not {SPEECH_HZ} Hz mono")
        recording = Sentence(name, samples, np.zeros(len(samples) // HOP, np.int64))
        for text, order in orders.items():
            likelihood, agreeing, closed = judge(network, recording, order)
            logger.info(
                "%s as %s: log-probability %.2f, frames agreeing %.2f, bilabials closed %.2f",
                *(name, text, likelihood, agreeing, closed),
            )


if __name__ == "__main__":
    main()
