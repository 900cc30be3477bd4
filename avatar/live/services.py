"""What a conversation asks of elsewhere: a recogniser of speech, and a chat. Keys stay on the server.

Both speak the protocol that OpenAI's servers made common, which Ollama, vLLM and others serve as well.
"""

from __future__ import annotations

import io
import json
import logging
import os
import wave
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy as np

from avatar.errors import AvatarError, BadInput
from avatar.geometry import SPEECH_HZ
from avatar.media.onnx import report_to_nobody

log = logging.getLogger(__name__)

CHAT_URL, CHAT_KEY, CHAT_MODEL = "AVATAR_CHAT_URL", "AVATAR_CHAT_KEY", "AVATAR_CHAT_MODEL"
HEAR_URL, HEAR_KEY, HEAR_MODEL = "AVATAR_HEAR_URL", "AVATAR_HEAR_KEY", "AVATAR_HEAR_MODEL"
CONNECT_S, ANSWER_S = 5.0, 30.0
MOST_ANSWER_CHARS = 4000
WHISPER = "base"  # of faster-whisper's models, fetched from the hub at its first use
SYSTEM_PROMPT = (
    "You are a friendly person in a video call. Answer in one to three short spoken sentences, in the"
    " language in which you are addressed, without lists, markup or emoji."
)


class ServiceDown(AvatarError):
    """The chat or the recogniser cannot be had now; the session goes on."""


class Recogniser(Protocol):
    """What hears words."""

    def load(self) -> None:
        """Have it ready, so that the first sentence does not wait. Raises: ServiceDown."""

    def words(self, samples: np.ndarray) -> str:
        """What is said in float32 (n,) at SPEECH_HZ; "" for nothing. Raises: ServiceDown."""


@dataclass(frozen=True)
class ServiceAddress:
    """A server of ours to ask. url: ends before /chat/completions; key: never shown."""

    url: str
    model: str
    key: str = field(default="", repr=False)

    @classmethod
    def parse(cls, url: str, model: str, key: str, flag: str) -> ServiceAddress:
        """Raises: BadInput for an address that is none."""
        url = url.strip().rstrip("/")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BadInput(f"{flag} is no address.", "Give it as http://HOST:PORT/v1.")
        if "@" in parts.netloc or parts.query:
            raise BadInput(f"{flag} carries a password or a query.", "Give the key in the environment.")
        return cls(url, model, key)

    @property
    def host(self) -> str:
        """For messages."""
        return urlsplit(self.url).hostname or ""


def chat_address(
    url: str | None, model: str | None, env: Mapping[str, str] = os.environ
) -> ServiceAddress | None:
    """Where to chat, by a flag or the environment; None for nowhere. Raises: BadInput."""
    url, model = url or env.get(CHAT_URL, ""), model or env.get(CHAT_MODEL, "") or "default"
    return ServiceAddress.parse(url, model, env.get(CHAT_KEY, ""), "--chat-url") if url else None


def hear_address(
    url: str | None, model: str | None, env: Mapping[str, str] = os.environ
) -> ServiceAddress | None:
    """Where to have speech recognised; None for here. Raises: BadInput."""
    url, model = url or env.get(HEAR_URL, ""), model or env.get(HEAR_MODEL, "") or "whisper-1"
    return ServiceAddress.parse(url, model, env.get(HEAR_KEY, ""), "--hear-url") if url else None


class Chat:
    """One conversation with a chat server, streamed."""

    def __init__(self, address: ServiceAddress, system: str = SYSTEM_PROMPT, most_turns: int = 12) -> None:
        """most_turns: of both sides, that are remembered."""
        self._address, self._system, self._most_turns = address, system, most_turns
        self._turns: list[dict[str, str]] = []

    def answer(self, said: str) -> Iterator[str]:
        """Pieces of the answer, as they come. What was not taken is not remembered. Raises: ServiceDown."""
        self._turns = [*self._turns, {"role": "user", "content": said}][-self._most_turns :]
        answered = ""
        try:
            for piece in self._stream():
                answered += piece
                yield piece
                if len(answered) > MOST_ANSWER_CHARS:
                    break
        finally:
            if answered:
                self._turns.append({"role": "assistant", "content": answered})

    def _stream(self) -> Iterator[str]:
        import httpx

        asked = {
            "model": self._address.model,
            "stream": True,
            "messages": [{"role": "system", "content": self._system}, *self._turns],
        }
        with _asking("chat", self._address) as client:
            url = f"{self._address.url}/chat/completions"
            try:
                with client.stream("POST", url, json=asked) as answer:
                    if answer.status_code != 200:
                        raise _refused("chat", self._address, answer.status_code)
                    for line in answer.iter_lines():
                        yield from _delta(line)
            except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
                raise _unreached("chat", self._address, error) from None


def _delta(line: str) -> Iterator[str]:
    """The words of one line of server-sent events."""
    if not line.startswith("data:") or line[5:].strip() == "[DONE]":
        return
    try:
        choices = json.loads(line[5:])["choices"]
        text = choices[0]["delta"].get("content") if choices else None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        log.info("a line of the chat server is not understood")
        return
    if isinstance(text, str) and text:
        yield text


@dataclass(frozen=True)
class RemoteRecogniser:
    """See Recogniser: a server's."""

    address: ServiceAddress

    def load(self) -> None:
        """See Recogniser: there is nothing to load."""

    def words(self, samples: np.ndarray) -> str:
        """See Recogniser."""
        import httpx

        files = {"file": ("speech.wav", as_wav(samples), "audio/wav")}
        with _asking("recognition", self.address) as client:
            try:
                answer = client.post(
                    f"{self.address.url}/audio/transcriptions",
                    data={"model": self.address.model, "response_format": "json"},
                    files=files,
                )
                if answer.status_code != 200:
                    raise _refused("recognition", self.address, answer.status_code)
                return str(answer.json()["text"]).strip()
            except (
                httpx.HTTPError,
                httpx.InvalidURL,
                UnicodeError,
                ValueError,
                KeyError,
                TypeError,
            ) as error:
                raise _unreached("recognition", self.address, error) from None


class LocalRecogniser:
    """See Recogniser: faster-whisper here, where it is installed."""

    def __init__(self, model: str = WHISPER) -> None:
        """model: a name of faster-whisper's, or a folder."""
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
                "Whoever runs the server: pip install faster-whisper, or give --hear-url.",
            ) from error
        try:
            self._model = WhisperModel(self._name, device="auto", compute_type="default", cpu_threads=2)
        except Exception as error:  # the hub, the disk, the files: each fails in its own way
            log.exception("the recogniser cannot be loaded")
            raise ServiceDown(
                f"The recogniser {os.path.basename(self._name)} cannot be loaded ({type(error).__name__}).",
                "Whoever runs the server: see its log, or give --hear-url.",
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
    """The server's, or the one here."""
    return LocalRecogniser(model) if address is None else RemoteRecogniser(address)


def _asking(what: str, address: ServiceAddress) -> Any:
    import httpx

    headers = {"Authorization": f"Bearer {address.key}"} if address.key else {}
    return httpx.Client(timeout=httpx.Timeout(ANSWER_S, connect=CONNECT_S), headers=headers)


def _refused(what: str, address: ServiceAddress, status: int) -> ServiceDown:
    """The server's own words are not passed on: they may tell of its key."""
    why = {401: "does not accept the key", 403: "does not accept the key", 404: "has no such model or path"}
    reason = why.get(
        status, "has had enough requests for now" if status == 429 else f"fails (status {status})"
    )
    return ServiceDown(f"The {what} server {address.host} {reason}.", "The session goes on; try again later.")


def _unreached(what: str, address: ServiceAddress, error: Exception) -> ServiceDown:
    log.warning("the %s server %s: %s", what, address.host, type(error).__name__)
    return ServiceDown(
        f"The {what} server {address.host} does not answer ({type(error).__name__}).",
        "The session goes on; try again later.",
    )


def sentences_of(pieces: Iterator[str], ends: Sequence[str] = ".!?。！？…\n") -> Iterator[str]:
    """Whole sentences as soon as they are there, from the pieces of a text."""
    waiting = ""
    for piece in pieces:
        waiting += piece
        while (cut := _end_of_sentence(waiting, ends)) is not None:
            yield waiting[:cut].strip()
            waiting = waiting[cut:]
    if waiting.strip():
        yield waiting.strip()


def _end_of_sentence(text: str, ends: Sequence[str], least: int = 12) -> int | None:
    """Where the first sentence ends; a short one goes with the next, and so does what may be a number."""
    for at, char in enumerate(text[:-1]):
        dense = char in "。！？"
        if char in ends and (dense or text[at + 1].isspace()) and (at + 1 >= least or (dense and at > 3)):
            return at + 1
    return None
