"""Make the short clips with known phonemes for the tests, with voices that training never uses.

    python -m training.clips tests/data/speech

Writes one FLAC per sentence and `truth.json`: for each clip its voice, text and visemes as [viseme, frames].
"""

import argparse
import json
import logging
import random
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import soundfile

from avatar.geometry import SPEECH_HZ
from avatar.preview.visemes import VISEMES
from training.generate import KOKORO_HELD_OUT_SPEAKER, label, resample
from training.voices import Espeak, Hibari, Kokoro, Utterance, flite

logger = logging.getLogger(__name__)

FLITE_TEXTS = (
    "The baker put a big bowl of apples by the window.",
    "Maybe my brother bought the blue boat in April.",
    "Five people found the path above the valley.",
    "Please bring me a map before we leave the camp.",
    "Sheep jump over the broken bridge every morning.",
    "A warm summer wind moved slowly past the farm.",
)
KOKORO_TEXTS = (
    "I will be back by bus at about half past seven.",
    "Bob may pick a purple plum from the tall tree.",
    "My father mixed some butter with brown pepper.",
    "We often play music in the room above the shop.",
    "The empty box belongs to a member of the club.",
    "Both of them hope that it will soon be spring.",
)
ESPEAK_TEXTS = (
    ("pl+f4", "Mama kupiła babci piękny obraz z motylem."),
    ("pl+m7", "Po południu pójdziemy nad małe jezioro popływać."),
    ("pl+f4", "Mój brat bardzo lubi pieczone jabłka z miodem."),
    ("fr+m7", "Le petit bateau passe sous le pont près du moulin."),
    ("fr+f4", "Ma belle amie prépare un bon repas pour demain."),
    ("fr+m7", "Il fait beau, et nous mangeons ensemble au jardin."),
)


def speak() -> Iterator[tuple[str, str, Utterance]]:
    """Yield voice, text and speech of each clip."""
    for text in FLITE_TEXTS:
        yield "flite-awb", text, flite("awb", text)
    kokoro, reader = Kokoro(), Hibari()
    for text in KOKORO_TEXTS:
        speech = kokoro.speak({KOKORO_HELD_OUT_SPEAKER: 1.0}, reader.phonemes(text), 1.0)
        yield f"kokoro-{KOKORO_HELD_OUT_SPEAKER}", text, speech
    espeak, rng = Espeak(), random.Random(0)
    for voice, text in ESPEAK_TEXTS:
        yield f"espeak-{voice}", text, espeak.speak(voice, text, rng.randint(150, 175), rng.randint(40, 60))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder for the clips")
    folder = parser.parse_args().folder
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folder.mkdir(parents=True, exist_ok=True)
    truth = {}
    for index, (voice, text, speech) in enumerate(speak()):
        name = f"{index:02d}_{voice.partition('-')[0]}"
        samples = resample(speech)
        soundfile.write(folder / f"{name}.flac", samples, SPEECH_HZ, "PCM_16", compression_level=1.0)
        labels = label(voice, speech, len(samples))
        runs = [[VISEMES[viseme], len(list(run))] for viseme, run in groupby(labels.tolist())]
        truth[name] = {"voice": voice, "text": text, "visemes": runs}
        logger.info("%s: %.1f s, %s", name, len(samples) / SPEECH_HZ, text)
    lines = ",\n".join(
        f"  {json.dumps(name)}: {json.dumps(clip, ensure_ascii=False)}" for name, clip in truth.items()
    )
    (folder / "truth.json").write_text("{\n" + lines + "\n}\n", "utf-8")


if __name__ == "__main__":
    main()
