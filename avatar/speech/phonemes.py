"""Convert text to the phonemes that Kokoro was trained on, with one front end per language.

English: hibari, else misaki. Chinese and Japanese: misaki. Spanish, French, Hindi, Italian, Portuguese:
the program espeak-ng, if the user has installed it; its GPL does not extend to a program that only runs it.
"""

from __future__ import annotations

import importlib.util
import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

from avatar.speech import hibari_voices
from avatar.speech.voices import VoiceUnavailable

log = logging.getLogger(__name__)

English = Callable[[str, bool], str]
"""From a text, and whether it is British, to phonemes."""

ESPEAK = {"e": "es", "f": "fr-fr", "h": "hi", "i": "it", "p": "pt-br"}  # by a voice's first letter
_MISAKI = {"z": ("zh", ("jieba", "pypinyin", "cn2an")), "j": ("ja", ("pyopenjtalk",))}
_MISAKI_ENDS = (3, 13)  # it is published for older versions of Python
_MISAKI_ENGLISH = ("misaki", "num2words", "spacy")
_HAN = re.compile(r"[^A-Za-z]+|[A-Za-z][A-Za-z' \-]*")
_TIES = {
    "a^ɪ": "I", "a^ʊ": "W", "d^z": "ʣ", "d^ʒ": "ʤ", "e^ɪ": "A", "o^ʊ": "O", "ə^ʊ": "Q", "s^s": "S",
    "t^s": "ʦ", "t^ʃ": "ʧ", "ɔ^ɪ": "Y",
}  # fmt: skip  # pairs that the model writes as one letter
_ESPEAK_S = 20.0


def lacks(letter: str) -> str:
    """What must be installed to read a language, as an instruction; "" for nothing.

    letter: first letter of Kokoro's voices in that language.
    """
    if letter in "ab":
        if hibari_voices.checked() or all(map(importlib.util.find_spec, _MISAKI_ENGLISH)):
            return ""
        others = " ".join(_MISAKI_ENGLISH)
        return f"Run: pip install hibari-tts=={hibari_voices.VERSION}, or: pip install {others}"
    if letter in ESPEAK:
        return "" if shutil.which("espeak-ng") else "Install the program espeak-ng (apt install espeak-ng)"
    extra, modules = _MISAKI[letter]
    needed = ("misaki", *modules)
    if all(importlib.util.find_spec(name) for name in needed):
        return ""
    if sys.version_info >= _MISAKI_ENDS:
        return "Use Python 3.12 or older, for which misaki is published: it reads this language"
    return f'Run: pip install "misaki[{extra}]"'


def phonemes(text: str, letter: str, english: English) -> str:
    """Convert a sentence to the model's phonemes. Raises: VoiceUnavailable."""
    if letter in "ab":
        return _english(text, letter == "b", english)
    if letter == "z":
        return _chinese(text, english)
    if letter == "j":
        return str(_japanese()(text)[0])
    return _espeak(text, ESPEAK[letter])


def _english(text: str, british: bool, english: English) -> str:
    if hibari_voices.checked():
        return english(text, british)
    try:
        return str(_misaki_english(british)(text)[0])
    except ImportError as error:
        raise VoiceUnavailable("English cannot be read here.", f"Run: {hibari_voices.INSTALL}") from error


@cache
def _misaki_english(british: bool) -> Any:
    from misaki.en import G2P

    return G2P(british=british)


def _chinese(text: str, english: English) -> str:
    """Phonemes of Chinese text, with English words in it read as English."""
    return " ".join(
        _english(part.strip(), False, english) if part[0].isascii() and part[0].isalpha() else _zh()(part)[0]
        for part in _HAN.findall(text)
        if part.strip()
    )


@cache
def _zh() -> Any:
    import jieba
    from misaki.zh import ZHG2P

    jieba.setLogLevel(logging.WARNING)
    return ZHG2P()


@cache
def _japanese() -> Any:
    from misaki.ja import JAG2P

    return JAG2P(version="pyopenjtalk")


def _espeak(text: str, language: str) -> str:
    """Phonemes from the installed espeak-ng, clause by clause because it drops punctuation."""
    program = shutil.which("espeak-ng")
    if program is None:
        raise VoiceUnavailable("The program espeak-ng is not installed.", "Run: apt install espeak-ng")
    out = ""
    for clause, mark in re.findall(r"([^,.;:!?…¿¡—]+)([,.;:!?…—]*)", text):
        if clause.strip():
            out += f" {_run(program, clause.strip(), language)}{mark}"
    for tied, letter in _TIES.items():
        out = out.replace(tied, letter)
    return out.replace("^", "").replace("-", "").strip()


def _run(program: str, clause: str, language: str) -> str:
    command = [program, "-q", "--ipa", "--tie=^", "-v", language, "--stdin"]
    try:
        done = subprocess.run(
            command, input=clause, capture_output=True, text=True, timeout=_ESPEAK_S, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("espeak-ng failed", exc_info=error)
        raise VoiceUnavailable(
            f"espeak-ng could not read the text ({type(error).__name__}).", "Check that it runs."
        ) from error
    spoken = " ".join(done.stdout.split())
    return re.sub(r"\([a-z-]+\)", "", spoken)  # espeak-ng's marks of a switch to another language
