"""Make the training speech: texts spoken by synthesisers that report phoneme times.

    python -m training.generate DATA [--voices flite espeak hibari kokoro] [--share 1.0]

Writes DATA/train/VOICE_0000.npz and DATA/held_out/VOICE_0000.npz, each with `samples` (int16, 16 kHz) and
`labels` (int16 viseme indices at 100 Hz). README.md in this folder describes the voices and their licences.
"""

import argparse
import itertools
import logging
import random
import re
from collections.abc import Iterator
from math import gcd
from pathlib import Path

import numpy as np
from scipy.signal import resample_poly

from avatar.geometry import SPEECH_HZ
from avatar.preview.visemes import HOP
from training.phonemes import frame_labels
from training.voices import Espeak, Hibari, Kokoro, Utterance, flite

logger = logging.getLogger(__name__)

FORTUNES = Path("/usr/share/games/fortunes")
# English collections; the same folder holds other languages' folders and stray files in other languages.
ENGLISH = (
    "art", "computers", "cookie", "definitions", "education", "food", "fortunes", "goedel",
    "humorists", "kids", "law", "linuxcookie", "literature", "love", "magic", "medicine",
    "miscellaneous", "people", "pets", "platitudes", "politics", "riddles", "science",
    "songs-poems", "sports", "startrek", "tao", "translate-me", "wisdom", "work",
)  # fmt: skip
# Added to a synthesiser's phoneme times to match its sound; measured by `align.py`.
SHIFT_S = {"espeak": -0.01, "flite": 0.0, "hibari": -0.06, "kokoro": -0.06}

FLITE_TRAINING = {"slt": 260, "rms": 260, "kal16": 120}
FLITE_HELD_OUT = {"awb": 80}
ESPEAK_TRAINING = {"en-us": 120, "en": 60, "es": 120, "de": 120, "it": 80, "cs": 60, "ru": 80}
ESPEAK_VARIANTS = (
    "", "+f1", "+f2", "+f3", "+f5", "+m1", "+m2", "+m3", "+m4", "+m5", "+m6", "+m8",
    "+klatt", "+klatt2", "+Annie", "+linda", "+steph", "+Michael", "+Marco", "+Andrea",
)  # fmt: skip
# A language and two speakers that training never uses.
ESPEAK_HELD_OUT = {"pl": 60}
ESPEAK_VARIANTS_HELD_OUT = ("+f4", "+m7")
HIBARI_TRAINING = 580
KOKORO_SPEAKERS = ("jf_alpha", "jf_gongitsune", "jf_nezumi", "jf_tebukuro")
KOKORO_TRAINING = 260
KOKORO_HELD_OUT_SPEAKER, KOKORO_HELD_OUT = "jm_kumo", 30

Item = tuple[str, bool, Utterance]  # voice, held out, speech


def sentences(language: str) -> list[str]:
    """Return the sentences of 25 to 130 letters in Debian's fortunes, shuffled with a fixed seed."""
    if language == "en":
        files = [FORTUNES / name for name in ENGLISH]
    else:
        folder = FORTUNES / language
        files = [
            path for path in sorted(folder.iterdir()) if path.is_file() and path.suffix in ("", ".fortunes")
        ]
    found: set[str] = set()
    for path in files:
        for fortune in path.read_text("utf-8", "ignore").split("\n%\n"):
            quote = re.sub(r"\s+", " ", re.sub(r"--.*", "", fortune, flags=re.DOTALL))
            found |= {text.strip() for text in re.split(r"(?<=[.!?])\s", quote)}
    speakable = sorted(text for text in found if _is_speakable(text))
    random.Random(1).shuffle(speakable)
    return speakable


def _is_speakable(text: str) -> bool:
    plain = sum(character.isalpha() or character in " ,.'!?;:-" for character in text)
    return 25 < len(text) < 130 and not re.search(r"[0-9]", text) and plain > 0.97 * len(text)


def flite_items(share: float) -> Iterator[Item]:
    """Speak English with flite's voices."""
    texts = iter(sentences("en"))
    for held_out, counts in ((False, FLITE_TRAINING), (True, FLITE_HELD_OUT)):
        for voice, count in counts.items():
            for text in itertools.islice(texts, round(count * share)):
                yield f"flite-{voice}", held_out, flite(voice, text)


def espeak_items(share: float) -> Iterator[Item]:
    """Speak several languages with espeak-ng's speaker variants at random pace and pitch."""
    engine, rng = Espeak(), random.Random(3)
    plans = ((False, ESPEAK_TRAINING, ESPEAK_VARIANTS), (True, ESPEAK_HELD_OUT, ESPEAK_VARIANTS_HELD_OUT))
    for held_out, counts, variants in plans:
        for language, count in counts.items():
            texts = sentences(language.partition("-")[0])[::-1]
            for text in texts[: round(count * share)]:
                voice = language + rng.choice(variants)
                speech = engine.speak(voice, text, rng.randint(130, 210), rng.randint(25, 75))
                yield f"espeak-{language}", held_out, speech


def hibari_items(share: float) -> Iterator[Item]:
    """Speak English with hibari."""
    engine, rng = Hibari(), np.random.default_rng(0)
    texts = sentences("en")[1000:]
    for text in texts[: round(HIBARI_TRAINING * share)]:
        yield "hibari", False, engine.speak(text, float(rng.uniform(0.85, 1.2)), rng)


def kokoro_items(share: float) -> Iterator[Item]:
    """Speak English with Kokoro's speakers: half of the sentences with one, half with a blend of two."""
    engine, reader, rng = Kokoro(), Hibari(), random.Random(4)
    texts = iter(sentences("en")[2000:])
    for text in itertools.islice(texts, round(KOKORO_TRAINING * share)):
        first, second = rng.sample(KOKORO_SPEAKERS, 2)
        weight = rng.uniform(0.2, 0.8) if rng.random() < 0.5 else 1.0
        blend = {first: weight, second: 1 - weight}
        yield "kokoro", False, engine.speak(blend, reader.phonemes(text), rng.uniform(0.9, 1.15))
    for text in itertools.islice(texts, round(KOKORO_HELD_OUT * share)):
        speech = engine.speak({KOKORO_HELD_OUT_SPEAKER: 1.0}, reader.phonemes(text), rng.uniform(0.9, 1.15))
        yield "kokoro-kumo", True, speech


SYNTHESISERS = {"flite": flite_items, "espeak": espeak_items, "hibari": hibari_items, "kokoro": kokoro_items}


def resample(speech: Utterance) -> np.ndarray:
    """Return the samples of an utterance at `SPEECH_HZ`, (n,) float32 in -1..1."""
    divisor = gcd(speech.rate_hz, SPEECH_HZ)
    samples = resample_poly(speech.samples, SPEECH_HZ // divisor, speech.rate_hz // divisor)
    return np.clip(samples, -1, 1).astype(np.float32)


def label(voice: str, speech: Utterance, num_samples: int) -> np.ndarray:
    """Return the viseme index of each frame of an utterance of num_samples at `SPEECH_HZ`."""
    return frame_labels(speech.segments, num_samples // HOP, SHIFT_S[voice.partition("-")[0]])


def save(path: Path, voice: str, speech: Utterance) -> float:
    """Write one utterance at `SPEECH_HZ` with its frame labels; return its length in seconds."""
    samples = resample(speech)
    labels = label(voice, speech, len(samples))
    np.savez_compressed(path, samples=(samples * 32767).astype(np.int16), labels=labels)
    return len(samples) / SPEECH_HZ


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder for the speech")
    parser.add_argument("--voices", nargs="+", choices=SYNTHESISERS, default=list(SYNTHESISERS))
    parser.add_argument("--share", type=float, default=1.0, help="share of the full amount, for a trial")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name in arguments.voices:
        counts: dict[str, int] = {}
        seconds: dict[str, float] = {}
        for voice, held_out, speech in SYNTHESISERS[name](arguments.share):
            folder = arguments.data / ("held_out" if held_out else "train")
            folder.mkdir(parents=True, exist_ok=True)
            index = counts.get(voice, 0)
            seconds[voice] = seconds.get(voice, 0.0) + save(
                folder / f"{voice}_{index:04d}.npz", voice, speech
            )
            counts[voice] = index + 1
        for voice, count in counts.items():
            logger.info("%s: %d sentences, %.1f minutes", voice, count, seconds[voice] / 60)


if __name__ == "__main__":
    main()
