"""Speak a text in the background. What a slow voice has said can be animated while it goes on."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from avatar.errors import AvatarError, Cancelled
from avatar.media.atomic import disk_error
from avatar.media.growing import GrowingWriter
from avatar.media.limits import InputLimits
from avatar.media.speech_reader import is_audible
from avatar.request import Caption
from avatar.speech.narration import Narrator, SpokenSentence

log = logging.getLogger(__name__)

SOON_S = 2.0  # a voice that will have ended within this time is waited for
SETTLING_S = 0.5  # after its first sentence, in which a fast voice says the next one
POLL_S = 0.1
_STOP_S = 2.0  # the longest that stop() waits; a request to a server may take longer to end


class Voicing:
    """One text being spoken, in a thread of its own.

    spoken: the complete sound at the voice's rate, there once is_whole. wav, journal: see media.growing.
    captions: of the sentences so far.
    """

    def __init__(self, narrator: Narrator, folder: Path, limits: InputLimits) -> None:
        """Begin to speak into a folder that is there. Raises: OSError."""
        self.spoken = folder / "spoken.wav"
        self._narrator, self._limits = narrator, limits
        self._acts: list[Callable[[], None]] = []
        self._ending, self._is_over = threading.Lock(), False
        self._writer = GrowingWriter(folder / "growing.wav")
        self.wav, self.journal = self._writer.wav, self._writer.journal
        self.captions: tuple[Caption, ...] = ()
        self.error: AvatarError | None = None
        self.is_whole = False
        self._is_audible = False
        self._letters = sum(len(part.text) for part in narrator.parts)
        self._marks: list[tuple[float, int]] = [(time.monotonic(), 0)]  # time, letters said until then
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._speak, name="voice", daemon=True)
        self._thread.start()

    @property
    def can_grow(self) -> bool:
        """Whether it is certain to stay within the limits; a longer text is spoken first, to be refused."""
        return self._narrator.most_s <= self._limits.max_speech_s

    @property
    def outline(self) -> tuple[Caption, ...]:
        """What captions will say, before it is known when; none if there are to be none."""
        if self._narrator.script.speaking.captions == "off":
            return ()
        return tuple(Caption(0.0, 0.0, part.text) for part in self._narrator.parts)

    def when_over(self, act: Callable[[], None]) -> None:
        """Call this when the voice has ended, whatever the reason; at once if it has."""
        with self._ending:
            if not self._is_over:
                self._acts.append(act)
                return
        act()

    def wait(self, may_grow: bool) -> Iterator[None]:
        """Yield now and then, until all is said, or a slow voice has said its first sentence.

        may_grow: whether the latter will do. Raises: AvatarError, what the voice failed with until then;
        Cancelled.
        """
        while True:
            self._thread.join(POLL_S)
            if self.error is not None:
                raise self.error
            if self._stopped.is_set():
                raise Cancelled("The voice was stopped.")
            if self.is_whole or (may_grow and self.can_grow and self._is_audible and self._is_slow()):
                return
            yield

    def cancel(self) -> None:
        """Let the voice end after its sentence, without waiting for that."""
        self._stopped.set()

    def stop(self) -> None:
        """Let the voice end after its sentence, and wait for that, but not long."""
        self.cancel()
        if threading.current_thread() is not self._thread:
            self._thread.join(_STOP_S)

    def _is_slow(self) -> bool:
        """Whether the rest will take longer than SOON_S, by the pace so far."""
        now, marks = time.monotonic(), self._marks
        if len(marks) < 2 or (len(marks) == 2 and now - marks[1][0] < SETTLING_S):
            return False
        since, before = marks[min(1, len(marks) - 2)]  # the first sentence may include loading a model
        said = marks[-1][1]
        return (now - since) / (said - before) * (self._letters - said) > SOON_S

    def _speak(self) -> None:
        try:
            for said in self._narrator.write(self.spoken, self._limits):
                self._add(said)
                if self._stopped.is_set():
                    return
            self._writer.end()
            self.is_whole = True
        except Exception as error:
            known = disk_error(error)
            if not isinstance(known, AvatarError):
                log.error("a voice failed", exc_info=error)
                known = AvatarError("The voice failed.", "Try again, or choose another voice.")
            self._fail(known)
        finally:
            self._writer.close()
            with self._ending:
                self._is_over = True
            for act in self._acts:
                act()

    def _add(self, said: SpokenSentence) -> None:
        caption, letters = said.caption, self._marks[-1][1] + len(said.text)
        self.captions = (*self.captions, caption)
        shown = self._narrator.script.speaking.captions != "off"
        self._writer.add(
            said.pcm, said.hz, caption if shown else None, caption.end_s * self._letters / letters
        )
        self._is_audible = self._is_audible or is_audible(said.samples)
        self._marks.append((time.monotonic(), letters))

    def _fail(self, error: AvatarError) -> None:
        self.error = error
        try:
            self._writer.end(error)
        except OSError as full:
            log.warning("the end of a voice cannot be noted: %s", full.strerror)
            self._writer.abandon()
