"""Speak texts in a session, sentence by sentence in a separate thread, with timed captions."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np

from avatar.errors import AvatarError, BadInput
from avatar.events import Notice
from avatar.geometry import SOUND_HZ
from avatar.live.session import LiveSession
from avatar.live.slowness import reported_if_slow
from avatar.media.limits import InputLimits
from avatar.settings import Speaking
from avatar.speech.catalogue import Catalogue
from avatar.speech.narration import Narrator, Script

log = logging.getLogger(__name__)

MOST_TEXT_CHARS = 2000  # per message
MOST_QUEUED = 8  # texts
AHEAD_S = 12.0  # no further sentence is queued while this much sound is waiting


@dataclass(frozen=True)
class _Text:
    narrator: Narrator
    cuts: int
    queued_at: float


class SessionVoice:
    """Speaks texts in a session, one after another."""

    def __init__(self, session: LiveSession, catalogue: Catalogue) -> None:
        self._session, self._catalogue = session, catalogue
        self._texts: queue.Queue[_Text | None] = queue.Queue(MOST_QUEUED)
        self._cuts = 0  # texts queued before the last cut are dropped
        self._closed = threading.Event()
        self._speaking = threading.Event()
        self._thread = threading.Thread(target=self._work, name="live-voice", daemon=True)
        self._thread.start()

    @property
    def is_speaking(self) -> bool:
        """Whether a text is being spoken or is queued."""
        return self._speaking.is_set() or not self._texts.empty() or self._session.sound_queue.waiting_s > 0.1

    def say(self, text: str, voice: str = "", speed: float = 1.0) -> None:
        """Queue a text. Raises: BadInput for one that cannot be spoken."""
        check_length(text)
        speaking = Speaking(voice=voice, speed=speed) if voice else Speaking(speed=speed)
        narrator = Narrator.of(Script(text, speaking), self._catalogue, InputLimits())
        try:
            self._texts.put_nowait(_Text(narrator, self._cuts, time.monotonic()))
        except queue.Full:
            raise BadInput("Too many texts are queued.", "Wait until some have been.") from None

    def cut(self) -> bool:
        """Stop speaking and drop all texts. Returns whether anything was being spoken."""
        was = self.is_speaking
        self._cuts += 1
        self._session.interrupt()
        return was

    def close(self) -> None:
        """Stop speaking and end the thread."""
        self._closed.set()
        self._cuts += 1

    def _work(self) -> None:
        while not (self._closed.is_set() or self._session.over.is_set()):
            try:
                text = self._texts.get(timeout=0.2)
            except queue.Empty:
                continue
            if text is None or text.cuts != self._cuts:
                continue
            self._speaking.set()
            try:
                self._say(text)
            except AvatarError as error:
                self._session.post_event(reported(error))
            except Exception:
                log.exception("a voice failed")
                self._session.post_event(reported(AvatarError("The voice failed.", "Choose another one.")))
            finally:
                self._speaking.clear()

    def _say(self, text: _Text) -> None:
        name = text.narrator.voice.name
        slow = Notice("voice_slow", f"The voice {name} is taking long.", values={"voice": name})
        sentences = text.narrator.sentences()
        while True:
            with reported_if_slow(self._session, slow):
                said = next(sentences, None)
            if said is None:
                return
            while self._session.sound_queue.waiting_s > AHEAD_S and text.cuts == self._cuts:
                if self._closed.wait(0.1) or self._session.over.is_set():
                    return
            if text.cuts != self._cuts:
                return
            in_s = self._session.sound_queue.waiting_s
            self._session.say(at_sound_hz(said.samples, said.hz))
            times = {"in_s": in_s, "seconds": len(said.samples) / said.hz}
            times["voice_s"] = time.monotonic() - text.queued_at
            self._session.post_event({"type": "said", "who": "avatar", "text": said.text, **times})


def check_length(text: str) -> None:
    """Refuse a text that is too long for one message. Raises: BadInput."""
    if len(text) > MOST_TEXT_CHARS:
        raise BadInput(
            f"The text is too long ({len(text)} characters).",
            f"Send {MOST_TEXT_CHARS} at a time at most.",
        )


def at_sound_hz(samples: np.ndarray, hz: int) -> np.ndarray:
    """float32 (n,) in -1..1 at any rate → int16 at SOUND_HZ."""
    resampler = av.AudioResampler("s16", "mono", SOUND_HZ)
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.clip(-1, 1))[None], "flt", "mono")
    frame.sample_rate, frame.pts, frame.time_base = hz, 0, Fraction(1, hz)
    out = [*resampler.resample(frame), *resampler.resample(None)]
    return np.concatenate([one.to_ndarray().reshape(-1) for one in out])


def reported(error: AvatarError) -> Mapping[str, Any]:
    """An error as an event for watchers; error: for those who say it in another language."""
    return {"type": "notice", "code": "error", "text": str(error), "values": {}, "error": error}
