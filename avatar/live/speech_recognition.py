"""Speech recognition, by faster-whisper in this process or any OpenAI-compatible transcription server."""

from __future__ import annotations

import io
import logging
import os
import wave
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from avatar.geometry import SPEECH_HZ
from avatar.live.service_address import ServiceAddress, ServiceDown, asking, refused, unreached
from avatar.media.onnx import report_to_nobody

log = logging.getLogger(__name__)

HEAR_URL, HEAR_KEY, HEAR_MODEL = "AVATAR_HEAR_URL", "AVATAR_HEAR_KEY", "AVATAR_HEAR_MODEL"
WHISPER = "base"  # a faster-whisper model, fetched from the hub at its first use
COMPUTE_TYPE = "auto"  # the fastest of the device: 8 bits on CPUs, in a quarter of the time of float32
MOST_THREADS = 4


def num_threads() -> int:
    """Threads of a local recogniser: half of the cores, since the engine draws frames meanwhile."""
    return min(MOST_THREADS, max(1, (os.cpu_count() or 2) // 2))


class Recogniser(Protocol):
    """Transcribes speech."""

    def load(self) -> None:
        """Load the model, so that the first sentence need not wait. Raises: ServiceDown."""

    def words(self, samples: np.ndarray) -> str:
        """Transcribe float32 (n,) at SPEECH_HZ; "" when nothing is said. Raises: ServiceDown."""


def hear_address(
    url: str | None, model: str | None, env: Mapping[str, str] = os.environ
) -> ServiceAddress | None:
    """The transcription server's address; None to recognise speech in this process. Raises: BadInput."""
    url, model = url or env.get(HEAR_URL, ""), model or env.get(HEAR_MODEL, "") or "whisper-1"
    return ServiceAddress.parse(url, model, env.get(HEAR_KEY, ""), "--hear-url") if url else None


@dataclass(frozen=True)
class RemoteRecogniser:
    """A Recogniser that asks a server."""

    address: ServiceAddress

    def load(self) -> None:
        """See Recogniser: there is nothing to load."""

    def words(self, samples: np.ndarray) -> str:
        """See Recogniser."""
        import httpx

        files = {"file": ("speech.wav", as_wav(samples), "audio/wav")}
        with asking(self.address) as client:
            try:
                answer = client.post(
                    f"{self.address.url}/audio/transcriptions",
                    data={"model": self.address.model, "response_format": "json"},
                    files=files,
                )
                if answer.status_code != 200:
                    raise refused("recognition", self.address, answer.status_code)
                return str(answer.json()["text"]).strip()
            except (
                httpx.HTTPError,
                httpx.InvalidURL,
                UnicodeError,
                ValueError,
                KeyError,
                TypeError,
            ) as error:
                raise unreached("recognition", self.address, error) from None


class LocalRecogniser:
    """A Recogniser that runs faster-whisper in this process, if it is installed."""

    def __init__(self, model: str = WHISPER) -> None:
        """model: a faster-whisper model's name, or a folder."""
        self._name, self._model = model, None

    def load(self) -> None:
        """See Recogniser."""
        if self._model is not None:
            return
        try:
            report_to_nobody()
            from faster_whisper import WhisperModel
        except ImportError as error:
            raise ServiceDown(
                "Speech is not recognised here: faster-whisper is not installed.",
                "Ask the server's operator to run `pip install faster-whisper`, or to give --hear-url.",
                why="library",
            ) from error
        try:
            self._model = WhisperModel(
                self._name, device="auto", compute_type=COMPUTE_TYPE, cpu_threads=num_threads()
            )
        except Exception as error:  # the hub, the disk and the files raise different errors
            log.exception("the recogniser cannot be loaded")
            raise ServiceDown(
                f"The recogniser {os.path.basename(self._name)} cannot be loaded ({type(error).__name__}).",
                "Ask the server's operator to look at its log, or to give --hear-url.",
                why="model",
            ) from None

    def words(self, samples: np.ndarray) -> str:
        """See Recogniser."""
        self.load()
        model: Any = self._model
        segments, _ = model.transcribe(samples, beam_size=1, condition_on_previous_text=False)
        return " ".join(segment.text.strip() for segment in segments).strip()


def as_wav(samples: np.ndarray) -> bytes:
    """float32 (n,) at SPEECH_HZ as a 16-bit WAV file."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as out:
        out.setparams((1, 2, SPEECH_HZ, 0, "NONE", ""))
        out.writeframes(np.rint(samples.clip(-1, 1) * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


def recogniser(address: ServiceAddress | None, model: str = WHISPER) -> Recogniser:
    """The server's recogniser, or the local one if address is None."""
    return LocalRecogniser(model) if address is None else RemoteRecogniser(address)
