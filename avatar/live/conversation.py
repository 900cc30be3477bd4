"""The three modes of a live session: mirror, type and talk.

mirror: the avatar speaks with the user's microphone sound. type: the avatar reads typed texts. talk: the
user's sentences are recognised and sent to a chat server, whose answer the avatar speaks; without a chat
server it repeats what was said.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import takewhile
from typing import Literal, get_args

import numpy as np

from avatar.errors import AvatarError, BadInput
from avatar.events import Notice
from avatar.geometry import SPEECH_HZ
from avatar.live.chat import Chat, sentences_of
from avatar.live.session import LiveSession
from avatar.live.slowness import reported_if_slow
from avatar.live.speech_recognition import Recogniser
from avatar.live.vad import CHUNK, Turns, VoiceProbability
from avatar.live.voice import SessionVoice, check_length, reported
from avatar.media.timeline import Timeline

log = logging.getLogger(__name__)

Mode = Literal["mirror", "type", "talk"]

BEFORE = 16  # chunks before detected speech that are included in it: half a second
LONGEST_TURN_S = 30.0  # a longer turn is recognised up to here
MOST_UNHEARD = 400  # chunks waiting for the detector: 13 s

RECOGNITION_SLOW = Notice("recognition_slow", "Speech recognition is taking long.")
CHAT_SLOW = Notice("chat_slow", "The chat is taking long to answer.")


class Conversation:
    """The conversation of one session. Its own threads listen and answer; thread-safe."""

    def __init__(
        self,
        session: LiveSession,
        voice: SessionVoice,
        recogniser: Recogniser,
        chat: Chat | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """chat: None to repeat what is said."""
        self.session, self.voice = session, voice
        self._recogniser, self._chat, self._clock = recogniser, chat, clock
        self._mode: Mode = "mirror"
        self._settings = ("", 1.0)  # voice and speed of answers
        self._closed = threading.Event()
        self._sound: queue.Queue[np.ndarray] = queue.Queue(MOST_UNHEARD)
        self._turns: queue.Queue[tuple[np.ndarray | str, float]] = queue.Queue(2)
        self._answers = 0  # counts interruptions; answers begun before the last one are dropped
        self._threads: list[threading.Thread] = []
        self._starting = threading.Lock()

    @property
    def mode(self) -> Mode:
        return self._mode

    def set_mode(self, mode: str, voice: str = "", speed: float = 1.0) -> None:
        """Switch to a mode. Raises: BadInput for an unknown mode."""
        if mode not in get_args(Mode):
            raise BadInput("There is no such mode.", f"Choose {', '.join(get_args(Mode))}.")
        self._settings = (voice, speed)
        if mode != self._mode:
            self.interrupt()
        self._mode = mode  # type: ignore[assignment]
        if mode == "talk":
            self._listen_from_now()

    def set_part(self, part: str, model: str = "") -> None:
        """What the chat is to be, in the visitor's words, and its model. Raises: BadInput."""
        if self._chat is not None:
            self._chat.set_part(part, model)
        elif part or model:
            raise BadInput("No chat answers here.", "Ask the server's operator to give --chat-url.")

    def hear(self, samples: np.ndarray) -> None:
        """Take the microphone's next samples, int16 (n,) at SOUND_HZ."""
        if self._mode == "mirror":
            self.session.say(samples, live=True)
        elif self._mode == "talk":
            try:
                self._sound.put_nowait(samples)
            except queue.Full:
                log.info("the detector is behind: sound is left out")

    def say(self, text: str, voice: str = "", speed: float = 1.0) -> None:
        """Queue a text to be spoken. Raises: BadInput."""
        self.voice.say(text, voice, speed)

    def ask(self, text: str) -> None:
        """Answer a text as if it had been spoken. Raises: BadInput."""
        if self._mode != "talk":
            raise BadInput("Texts are answered in the mode talk.")
        check_length(text)
        self.interrupt()
        try:
            self._turns.put_nowait((text, self._clock()))
        except queue.Full:
            raise BadInput("Too many messages are waiting for an answer.", "Wait for an answer.") from None

    def interrupt(self) -> bool:
        """Stop speaking and drop what is queued; watchers are told. Returns whether there was anything."""
        self._answers += 1
        found = self.voice.cut()
        if found:
            self.session.post_event({"type": "interrupted"})
        return found

    def close(self) -> None:
        """Stop listening and speaking."""
        self._closed.set()
        self._answers += 1
        self.voice.close()

    def _listen_from_now(self) -> None:
        with self._starting:
            if self._threads:
                return
            for work in (self._detect, self._take_turns, self._load):
                thread = threading.Thread(target=self._kept_going, args=(work,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _kept_going(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:
            log.exception("a conversation's thread failed")
            self.session.post_event(
                reported(AvatarError("Listening failed.", "The log of the server says why."))
            )

    @property
    def _is_over(self) -> bool:
        return self._closed.is_set() or self.session.over.is_set()

    def _detect(self) -> None:
        """Detect the user's turns in the sound; speaking over the avatar interrupts it."""
        probability, turns = VoiceProbability(), Turns()
        before: deque[np.ndarray] = deque(maxlen=BEFORE)
        turn: list[np.ndarray] = []
        for chunk in self._chunks():
            change = turns.note(probability(chunk))
            if change == "begins":
                self.session.post_event({"type": "hearing", "on": True})
                self.interrupt()
                turn = [*before]
            self.session.sound_queue.hold(turns.is_suspected)
            if turns.is_speaking:
                turn.append(chunk)
            if change == "ends" or len(turn) * CHUNK > LONGEST_TURN_S * SPEECH_HZ:
                self.session.post_event({"type": "hearing", "on": False})
                self._end_turn(np.concatenate(turn))
                turn = []
            before.append(chunk)

    def _end_turn(self, samples: np.ndarray) -> None:
        try:
            self._turns.put_nowait((samples, self._clock()))
        except queue.Full:
            self.session.post_event(reported(AvatarError("Recognition is behind: a sentence was skipped.")))

    def _chunks(self) -> Iterator[np.ndarray]:
        """Yield the microphone's sound in chunks, float32 (CHUNK,) at SPEECH_HZ."""
        timeline, at = Timeline(2.0), 0
        while not self._is_over:
            try:
                timeline.append(self._sound.get(timeout=0.1))
            except queue.Empty:
                self.session.sound_queue.hold(False)  # the microphone was closed in the middle of a word
                continue
            while at + CHUNK <= timeline.num_heard:
                yield timeline.listen(at, at + CHUNK)
                at += CHUNK

    def _load(self) -> None:
        try:
            self._recogniser.load()
        except AvatarError as error:
            self.session.post_event(reported(error))

    def _take_turns(self) -> None:
        while not self._is_over:
            try:
                said, ended_at = self._turns.get(timeout=0.1)
            except queue.Empty:
                continue
            try:
                if isinstance(said, str):
                    self._answer(said, ended_at)
                    continue
                began = self._clock()
                with reported_if_slow(self.session, RECOGNITION_SLOW):
                    words = self._recogniser.words(said)
                if not words:
                    self.session.post_event({"type": "not_understood"})
                    continue
                self.session.post_event(
                    {"type": "said", "who": "you", "text": words, "in_s": 0.0, "seconds": 0.0}
                )
                self._answer(words, ended_at, recognised_s=self._clock() - began)
            except AvatarError as error:
                self.session.post_event(reported(error))

    def _answer(self, words: str, ended_at: float, recognised_s: float = 0.0) -> None:
        """Ask the chat server, and speak each sentence as soon as it is complete."""
        answer, first, asked_at = self._answers, True, self._clock()
        voice, speed = self._settings
        pieces = iter([words]) if self._chat is None else self._chat.answer(words)
        wanted = takewhile(lambda _: answer == self._answers, pieces)
        try:
            for sentence in self._as_they_come(sentences_of(wanted)):
                if answer != self._answers:
                    return
                self.voice.say(sentence, voice, speed)
                if first:
                    now = self._clock()
                    spent = {
                        "recognition_s": recognised_s,
                        "chat_s": now - asked_at,
                        "answer_s": now - ended_at,
                    }
                    self.session.post_event({"type": "answering", **spent})
                    first = False
        except AvatarError as error:
            self.session.post_event(reported(error))

    def _as_they_come(self, sentences: Iterator[str]) -> Iterator[str]:
        """The sentences of an answer; a notice says where one takes long. Raises: ServiceDown."""
        while True:
            with reported_if_slow(self.session, CHAT_SLOW):
                sentence = next(sentences, None)
            if sentence is None:
                return
            yield sentence
