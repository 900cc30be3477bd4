"""Kokoro-82M from the hub, run by onnxruntime: phonemes and a voice's style in, sound out.

Source: github.com/hexgrad/kokoro (Apache-2.0, weights included), in its published ONNX form.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from avatar.media.onnx import open_onnx
from avatar.speech import voice_files
from avatar.speech.phonemes import English, lacks, phonemes
from avatar.speech.voices import Voice, VoiceUnavailable
from avatar.speech.writing_systems import DEVANAGARI, HAN, HIRAGANA, KATAKANA, LATIN

log = logging.getLogger(__name__)

REPO = "onnx-community/Kokoro-82M-v1.0-ONNX"
MODEL, TOKENIZER = "onnx/model_quantized.onnx", "tokenizer.json"
PREFIX = "kokoro/"
_MODEL_MB, _VOICE_MB = 93, 1
_MOST_TOKENS = 510  # per call; one more is added at each end
_STYLE = 256  # values per style; a voice has one style per number of tokens

# Languages by a voice's first letter: tag, scripts, name. Any of them may contain English words.
_LANGUAGES = {
    "a": ("en-US", (LATIN,), "American"),
    "b": ("en-GB", (LATIN,), "British"),
    "z": ("zh-CN", (HAN, LATIN), "Mandarin"),
    "j": ("ja-JP", (HAN, HIRAGANA, KATAKANA, LATIN), "Japanese"),
    "e": ("es-ES", (LATIN,), "Spanish"),
    "f": ("fr-FR", (LATIN,), "French"),
    "h": ("hi-IN", (DEVANAGARI, LATIN), "Hindi"),
    "i": ("it-IT", (LATIN,), "Italian"),
    "p": ("pt-BR", (LATIN,), "Brazilian Portuguese"),
}
_NAMES = (
    "af_heart", "af_bella", "af_nicole", "af_aoede", "af_kore", "af_sarah", "af_nova",
    "am_fenrir", "am_michael", "am_puck", "am_echo",
    "bf_emma", "bf_isabella",
    "bm_fable", "bm_george",
    "zf_xiaoxiao", "zf_xiaobei", "zf_xiaoni", "zf_xiaoyi",
    "zm_yunxi", "zm_yunjian", "zm_yunxia", "zm_yunyang",
    "jf_alpha", "jf_gongitsune", "jf_nezumi", "jf_tebukuro",
    "jm_kumo",
    "ef_dora",
    "em_alex",
    "ff_siwis",
    "hf_alpha", "hf_beta",
    "hm_omega", "hm_psi",
    "if_sara",
    "im_nicola",
    "pf_dora",
    "pm_alex",
)  # fmt: skip


class KokoroVoices:
    """A SpeechEngine of the Kokoro voices. The model is fetched and loaded on first use."""

    hz = 24_000

    def __init__(self, english: English) -> None:
        """english: converts English words to phonemes."""
        self._english = english
        self._speaking = threading.Lock()
        self._session: Any = None
        self._ids: dict[str, int] = {}
        self._styles: dict[str, np.ndarray] = {}

    def voices(self) -> list[Voice]:
        """See SpeechEngine."""
        fetch = 0 if voice_files.here(REPO, MODEL) else _MODEL_MB
        missing = {letter: lacks(letter) for letter in _LANGUAGES}
        return [_voice(name, fetch, missing[name[0]]) for name in _NAMES]

    def load(self, voice: str) -> None:
        """See SpeechEngine."""
        with self._speaking:
            self._open()
            self._style(voice.removeprefix(PREFIX))

    def synthesise(self, text: str, voice: str, speed: float = 1.0) -> Iterator[np.ndarray]:
        """See SpeechEngine."""
        name = voice.removeprefix(PREFIX)
        spoken = phonemes(text, name[0], self._english)
        with self._speaking:
            self._open()
            styles = self._style(name)
            for tokens in self._tokens(spoken):
                yield self._run(tokens, styles[min(len(tokens), len(styles) - 1)], speed)

    def _run(self, tokens: list[int], style: np.ndarray, speed: float) -> np.ndarray:
        """tokens: without the two at the ends. style: float32 (1, _STYLE). Returns sound, float32 (n,)."""
        given = {
            "input_ids": np.array([[0, *tokens, 0]], np.int64),
            "style": style,
            "speed": np.array([speed], np.float32),
        }
        (sound, *_) = self._session.run(None, given)
        return np.asarray(sound, np.float32).reshape(-1).clip(-1, 1)

    def _tokens(self, spoken: str) -> Iterator[list[int]]:
        """Phonemes as token ids, split between words into pieces of at most _MOST_TOKENS."""
        piece: list[int] = []
        for word in spoken.split(" "):
            known = [self._ids[char] for char in word if char in self._ids]
            unknown = {char for char in word if char not in self._ids}
            if unknown:
                log.info("phonemes that the model does not know are left out: %s", sorted(unknown))
            if piece and len(piece) + 1 + len(known) > _MOST_TOKENS:
                yield piece
                piece = []
            if known:
                piece += [*([self._ids[" "]] if piece and " " in self._ids else []), *known[:_MOST_TOKENS]]
        if piece:
            yield piece

    def _open(self) -> None:
        if self._session is not None:
            return
        model, tokenizer = voice_files.fetched(REPO, MODEL), voice_files.fetched(REPO, TOKENIZER)
        try:
            with tokenizer.open(encoding="utf-8") as file:
                ids = json.load(file)["model"]["vocab"]
            session = open_onnx(model)
            wanted = {"input_ids", "style", "speed"}
            if {given.name for given in session.get_inputs()} != wanted:
                raise ValueError("other inputs")
        except Exception as error:  # libraries raise many errors for a broken file
            log.warning("Kokoro cannot be loaded", exc_info=error)
            raise VoiceUnavailable(
                f"The model of {REPO} cannot be loaded: a file is damaged or of another version.",
                f"Remove {REPO} from the hub's cache and try again.",
            ) from error
        self._ids, self._session = ids, session

    def _style(self, name: str) -> np.ndarray:
        """A voice's styles by the number of tokens, float32 (lengths, 1, _STYLE)."""
        if name not in self._styles:
            numbers = np.fromfile(voice_files.fetched(REPO, f"voices/{name}.bin"), np.float32)
            if not numbers.size or numbers.size % _STYLE:
                raise VoiceUnavailable(
                    f"The file of the voice {name} is damaged.",
                    f"Remove {REPO} from the hub's cache and try again.",
                )
            self._styles[name] = numbers.reshape(-1, 1, _STYLE)
        return self._styles[name]


def _voice(name: str, fetch_mb: int, missing: str) -> Voice:
    letter, sex = name[0], "woman" if name[1] == "f" else "man"
    language, scripts, nation = _LANGUAGES[letter]
    here = voice_files.here(REPO, f"voices/{name}.bin")
    fetch = 0 if missing else fetch_mb + (0 if here else _VOICE_MB)
    return Voice(PREFIX + name, language, scripts, f"{nation} {sex}", fetch, missing)
