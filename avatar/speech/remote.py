"""Voices of a speech server: any with OpenAI's /v1/audio/speech, set in the environment.

AVATAR_SPEECH_URL: its address up to /v1. AVATAR_SPEECH_KEY: sent as a bearer token, never shown or logged.
AVATAR_SPEECH_MODEL, AVATAR_SPEECH_VOICES: model and voices to use, the voices separated by commas.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from avatar.errors import BadInput
from avatar.speech.voices import Voice, VoiceUnavailable

log = logging.getLogger(__name__)

URL, KEY, MODEL, VOICES = (f"AVATAR_SPEECH_{name}" for name in ("URL", "KEY", "MODEL", "VOICES"))
PREFIX = "url/"
CONNECT_S, ANSWER_S = 5.0, 60.0  # timeouts to connect, and between any two reads of an answer
_MOST_BYTES = 64 * 2**20  # per sentence
_SLOWEST, _FASTEST = 0.25, 4.0  # what the protocol allows
_OTHERS = "or choose the voice heart, which is here."


@dataclass(frozen=True)
class RemoteVoices:
    """A SpeechEngine that sends one request per sentence. url: "" for no server."""

    url: str = ""
    key: str = field(default="", repr=False)
    model: str = "tts-1"
    names: tuple[str, ...] = ("alloy",)
    hz: int = 24_000

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> RemoteVoices:
        """Read the environment variables. Raises: BadInput for an invalid address."""
        env = os.environ if environment is None else environment
        url = env.get(URL, "").strip().rstrip("/")
        parts = urlsplit(url)
        if url and (parts.scheme not in ("http", "https") or not parts.hostname):
            raise BadInput(f"${URL} is not a valid address.", "Give it as https://HOST/v1.")
        if "@" in parts.netloc or parts.query:
            raise BadInput(f"${URL} carries a password or a query.", f"Give the key as ${KEY}.")
        names = tuple(name.strip() for name in env.get(VOICES, "alloy").split(",") if name.strip())
        return cls(url, env.get(KEY, "").strip(), env.get(MODEL, "").strip() or "tts-1", names)

    @property
    def host(self) -> str:
        """The server's name, for messages."""
        return urlsplit(self.url).hostname or ""

    def voices(self) -> list[Voice]:
        """See SpeechEngine."""
        if not self.url:
            return []
        return [Voice(PREFIX + name, "", (), f"{self.model} at {self.host}") for name in self.names]

    def load(self, voice: str) -> None:
        """See SpeechEngine: there is nothing to load."""

    def synthesise(self, text: str, voice: str, speed: float = 1.0) -> Iterator[np.ndarray]:
        """See SpeechEngine."""
        asked = {
            "model": self.model,
            "voice": voice.removeprefix(PREFIX),
            "input": text,
            "speed": min(_FASTEST, max(_SLOWEST, speed)),
            "response_format": "wav",
        }
        samples = self._decoded(self._answer(asked))
        if samples.size:
            yield samples

    def _answer(self, asked: dict[str, Any]) -> bytes:
        import httpx

        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        timeout = httpx.Timeout(ANSWER_S, connect=CONNECT_S)
        try:
            with (
                httpx.Client(timeout=timeout, headers=headers) as client,
                client.stream("POST", f"{self.url}/audio/speech", json=asked) as answer,
            ):
                if answer.status_code != 200:
                    raise self._refused(answer.status_code, asked)
                body = bytearray()
                for piece in answer.iter_bytes():
                    body += piece
                    if len(body) > _MOST_BYTES:
                        raise VoiceUnavailable(f"The speech server {self.host} sent too much data.", _check())
        except httpx.TimeoutException as error:
            raise VoiceUnavailable(
                f"The speech server {self.host} does not answer in time.", f"Try again later, {_OTHERS}"
            ) from error
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            log.warning("the speech server %s: %s", self.host, type(error).__name__)
            raise VoiceUnavailable(
                f"The speech server {self.host} cannot be reached ({type(error).__name__}).",
                f"Check ${URL} and that it runs, {_OTHERS}",
            ) from None
        return bytes(body)

    def _refused(self, status: int, asked: Mapping[str, Any]) -> VoiceUnavailable:
        """The error for a status other than 200; the server's own message is not passed on."""
        match status:
            case 401 | 403:
                return VoiceUnavailable(
                    f"The speech server {self.host} does not accept the key.", f"Check ${KEY}, {_OTHERS}"
                )
            case 404:
                return VoiceUnavailable(
                    f"There is no /audio/speech at {self.host}, or no model {self.model!r}.",
                    f"Check ${URL}, which usually ends in /v1, and ${MODEL}.",
                )
            case 400 | 422:
                return VoiceUnavailable(
                    f"The speech server {self.host} refuses the voice {asked['voice']!r}, the model"
                    f" {self.model!r} or the text.",
                    f"Check ${VOICES} and ${MODEL}.",
                )
            case 429:
                return VoiceUnavailable(
                    f"The speech server {self.host} is rate-limiting requests.",
                    f"Try again later, {_OTHERS}",
                )
        return VoiceUnavailable(
            f"The speech server {self.host} fails (status {status}).", f"Try again later, {_OTHERS}"
        )

    def _decoded(self, sound: bytes) -> np.ndarray:
        """Decode sound of any format to float32 (n,) at hz; WAV was requested. Raises: VoiceUnavailable."""
        import av

        try:
            with av.open(io.BytesIO(sound), "r") as container:
                resampler = av.AudioResampler("flt", "mono", self.hz)
                frames = [
                    *(out for frame in container.decode(audio=0) for out in resampler.resample(frame)),
                    *resampler.resample(None),
                ]
        except (av.FFmpegError, IndexError, ValueError) as error:
            raise VoiceUnavailable(
                f"What the speech server {self.host} sent is not readable audio.", _check()
            ) from error
        samples = [frame.to_ndarray().reshape(-1) for frame in frames]
        return np.concatenate(samples).clip(-1, 1) if samples else np.zeros(0, np.float32)


def _check() -> str:
    return f"Check ${URL}, {_OTHERS}"
