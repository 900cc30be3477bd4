"""Map phonemes to mouth shapes: IPA and ARPAbet symbols to visemes, and segments to frame labels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from avatar.preview.visemes import FRAME_HZ, VISEMES

# /h/ has no shape of its own: the mouth already has that of the following vowel.
COPY_NEXT = "h"

_IPA_OF_VISEME = {
    "PP": "pbmʙɓβ",
    "FF": "fvɱʋⱱɸ",
    "TH": "θðT",
    "DD": "tdʈɖɗɟ",
    "kk": "kgɡŋxɣqɢχʁʀɴħʕʔʝQc",
    "CH": "ʃʒɕʑʂʐʧʤç",
    "SS": "szʦʣ",
    "nn": "nlɲʎɫɬɮɭɳʟ",
    "RR": "ɹrɾɽɚɝɻ",
    "aa": "aɑæʌɐɶ",
    "E": "eɛəɜɞɘᵊ",
    "ih": "iɪjɨᵻɯ",
    "oh": "oɔɒɤ",
    "ou": "uʊwʍyøœɥʉʏ",
    COPY_NEXT: "hɦ",
}
IPA: dict[str, str] = {symbol: viseme for viseme, symbols in _IPA_OF_VISEME.items() for symbol in symbols}

# Diphthongs, written as one capital letter in the phoneme alphabet of the Kokoro voices.
DIPHTHONGS: dict[str, tuple[str, str]] = {
    "A": ("E", "ih"), "I": ("aa", "ih"), "O": ("oh", "ou"), "W": ("aa", "ou"), "Y": ("oh", "ih"),
}  # fmt: skip
# Share of a diphthong that belongs to its first half.
DIPHTHONG_SPLIT = 0.55

_ARPABET_OF_VISEME = {
    "sil": "pau sil # brth",
    "PP": "p b m em",
    "FF": "f v",
    "TH": "th dh",
    "DD": "t d dx",
    "kk": "k g ng",
    "CH": "ch jh sh zh",
    "SS": "s z",
    "nn": "n l el en",
    "RR": "r er axr",
    "aa": "aa ae ah",
    "E": "ax eh",
    "ih": "y ih iy ix",
    "oh": "ao",
    "ou": "w uh uw ux",
    COPY_NEXT: "hh hv",
}
ARPABET: dict[str, tuple[str, ...]] = {
    phone: (viseme,) for viseme, phones in _ARPABET_OF_VISEME.items() for phone in phones.split()
} | {"ey": ("E", "ih"), "ay": ("aa", "ih"), "aw": ("aa", "ou"), "ow": ("oh", "ou"), "oy": ("oh", "ih")}

_VOWELS = frozenset({"aa", "E", "ih", "oh", "ou"})


@dataclass(frozen=True, slots=True)
class PhonemeSegment:
    """One phoneme's start and end in an utterance, in seconds, and its viseme (or `COPY_NEXT`)."""

    start_s: float
    end_s: float
    viseme: str


def of_ipa(symbols: str) -> list[str]:
    """Return the visemes of a string of IPA symbols, without unknown ones (stress, length)."""
    if symbols in ("ts", "dz"):
        return ["SS"]
    if len(symbols) > 1 and ("ʃ" in symbols or "ʒ" in symbols):
        return ["CH"]
    return [IPA[symbol] for symbol in symbols if symbol in IPA]


def spread(start_s: float, end_s: float, visemes: Sequence[str]) -> list[PhonemeSegment]:
    """Divide a phoneme's time among its visemes: silence for none, `DIPHTHONG_SPLIT` for two, else evenly."""
    if not visemes:
        return [PhonemeSegment(start_s, end_s, "sil")]
    if len(visemes) == 2:
        middle = start_s + DIPHTHONG_SPLIT * (end_s - start_s)
        return [PhonemeSegment(start_s, middle, visemes[0]), PhonemeSegment(middle, end_s, visemes[1])]
    edges = np.linspace(start_s, end_s, len(visemes) + 1)
    return [PhonemeSegment(float(edges[i]), float(edges[i + 1]), viseme) for i, viseme in enumerate(visemes)]


def frame_labels(segments: Sequence[PhonemeSegment], num_frames: int, shift_s: float = 0.0) -> np.ndarray:
    """Return the viseme index of each frame.

    segments: in order of time. shift_s: added to all times, for synthesisers that report them early or late.
    Returns (num_frames,) int16 at `FRAME_HZ`, silence where there is no segment.
    """
    labels = np.full(num_frames, VISEMES.index("sil"), np.int16)
    for index, segment in enumerate(segments):
        viseme = segment.viseme
        if viseme == COPY_NEXT:
            following = segments[index + 1].viseme if index + 1 < len(segments) else ""
            viseme = following if following in _VOWELS else "E"
        start, end = (max(0, round((t + shift_s) * FRAME_HZ)) for t in (segment.start_s, segment.end_s))
        labels[start:end] = VISEMES.index(viseme)
    return labels
