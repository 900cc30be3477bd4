"""Streamed answers of any OpenAI-compatible chat server, split into sentences as they arrive."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence

from avatar.errors import BadInput
from avatar.live.service_address import ServiceAddress, asking, no_answer, refused, unreached

log = logging.getLogger(__name__)

CHAT_URL, CHAT_KEY, CHAT_MODEL = "AVATAR_CHAT_URL", "AVATAR_CHAT_KEY", "AVATAR_CHAT_MODEL"
MOST_ANSWER_CHARS = 4000
MOST_PART_CHARS = 2000  # of what a visitor tells the chat about its part
SYSTEM_PROMPT = (
    "You are a friendly person in a video call. Answer in one to three short spoken sentences, in the"
    " language in which you are addressed, without lists, markup or emoji."
)


def chat_address(
    url: str | None, model: str | None, env: Mapping[str, str] = os.environ
) -> ServiceAddress | None:
    """The chat server's address, from a flag or the environment; None if neither is set. Raises: BadInput."""
    if model and not (url or env.get(CHAT_URL)):
        raise BadInput("--chat-model is given without --chat-url.", "Give the chat server's address as well.")
    url, models = url or env.get(CHAT_URL, ""), chat_models(model, env)
    return ServiceAddress.parse(url, models[0], env.get(CHAT_KEY, ""), "--chat-url") if url else None


def chat_models(model: str | None, env: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The models that visitors may choose from, the first one by default: names separated by commas."""
    names = (model or env.get(CHAT_MODEL, "")).split(",")
    return tuple(name.strip() for name in names if name.strip()) or ("default",)


class Chat:
    """One conversation with a chat server, streamed."""

    def __init__(
        self,
        address: ServiceAddress,
        system: str = SYSTEM_PROMPT,
        most_turns: int = 12,
        models: Sequence[str] = (),
    ) -> None:
        """most_turns: messages of both sides kept in the history. models: those that may be chosen."""
        self._address, self._system, self._most_turns = address, system, most_turns
        self._models, self._model = models or (address.model,), address.model
        self._part = ""
        self._turns: list[dict[str, str]] = []

    def set_part(self, part: str, model: str) -> None:
        """What the visitor wants the chat to be, which is added to the operator's prompt, and its model.

        part, model: "" for nothing more, and for the first model. Raises: BadInput.
        """
        if len(part) > MOST_PART_CHARS:
            raise BadInput(
                f"The chat's part is too long ({len(part)} characters).",
                f"Describe it in {MOST_PART_CHARS} at most.",
            )
        if model and model not in self._models:
            raise BadInput("There is no such chat model.", f"Choose {', '.join(self._models)}.")
        self._part, self._model = part.strip(), model or self._address.model

    def answer(self, said: str) -> Iterator[str]:
        """Yield the answer in pieces as they arrive; the history gets consumed ones. Raises: ServiceDown."""
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
        if not answered.strip():
            raise no_answer("chat", self._address)

    def _stream(self) -> Iterator[str]:
        import httpx

        system = f"{self._system}\n\n{self._part}".strip()
        asked = {
            "model": self._model,
            "stream": True,
            "messages": [{"role": "system", "content": system}, *self._turns],
        }
        with asking(self._address) as client:
            url = f"{self._address.url}/chat/completions"
            try:
                with client.stream("POST", url, json=asked) as answer:
                    if answer.status_code != 200:
                        raise refused("chat", self._address, answer.status_code)
                    for line in answer.iter_lines():
                        yield from _delta(line)
            except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
                raise unreached("chat", self._address, error) from None


def _delta(line: str) -> Iterator[str]:
    """The text in one line of server-sent events."""
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


def sentences_of(pieces: Iterator[str], ends: Sequence[str] = ".!?。！？…\n") -> Iterator[str]:
    """Yield whole sentences, from the pieces of a text, as soon as each is complete."""
    waiting = ""
    for piece in pieces:
        waiting += piece
        while (cut := _end_of_sentence(waiting, ends)) is not None:
            yield waiting[:cut].strip()
            waiting = waiting[cut:]
    if waiting.strip():
        yield waiting.strip()


def _end_of_sentence(text: str, ends: Sequence[str], least: int = 12) -> int | None:
    """Where the first sentence ends; a short one, or what may be a number, is joined with the next."""
    for at, char in enumerate(text[:-1]):
        dense = char in "。！？"
        if char in ends and (dense or text[at + 1].isspace()) and (at + 1 >= least or (dense and at > 3)):
            return at + 1
    return None
