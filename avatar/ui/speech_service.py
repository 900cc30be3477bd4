"""Visitors' texts, spoken on the server: the speech becomes an upload, as if they had recorded it."""

from __future__ import annotations

import logging
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from avatar.errors import AvatarError
from avatar.media.atomic import disk_error
from avatar.media.limits import InputLimits
from avatar.request import Caption
from avatar.settings import Speaking
from avatar.speech.catalogue import Catalogue
from avatar.speech.narration import Narrator, Script
from avatar.speech.voices import Voice
from avatar.ui.uploads import Uploads

log = logging.getLogger(__name__)

AT_ONCE, PER_VISITOR = 4, 2  # texts spoken at the same time; each occupies a thread of the server
# What a voice says as its sample, by language.
SAMPLES = {
    "en": "Hello. This is how I sound when I speak for your portrait.",
    "zh": "你好，我就用这个声音替你的肖像说话。",
    "ja": "こんにちは。この声で肖像画が話します。",
    "es": "Hola. Así suena mi voz cuando hablo por tu retrato.",
    "fr": "Bonjour. Voici ma voix quand je parle pour votre portrait.",
    "hi": "नमस्ते। आपके चित्र के लिए मेरी आवाज़ ऐसी है।",
    "it": "Ciao. Ecco la mia voce quando parlo per il tuo ritratto.",
    "pt": "Olá. É assim que soa a minha voz no seu retrato.",
}


class VoicesBusy(AvatarError):
    """As many texts are being spoken as the server takes, of this visitor or of all."""

    def __init__(self) -> None:
        super().__init__("The server is speaking too many texts right now.", "Please try again in a minute.")


@dataclass(frozen=True)
class SpokenText:
    """A script that has been spoken. path: the sound, among the uploads."""

    script: Script
    path: Path
    captions: tuple[Caption, ...]

    def is_of(self, script: Script) -> bool:
        """Whether it is of this script, in the same voice, and its file still exists."""
        return self.script.digest == script.digest and self.path.is_file()

    @property
    def shown(self) -> tuple[Caption, ...]:
        """The captions to show in its video."""
        return () if self.script.speaking.captions == "off" else self.captions


class SpeechService:
    """Speaks texts for visitors, several at a time and each sentence by sentence."""

    def __init__(self, uploads: Uploads, limits: InputLimits) -> None:
        self._uploads, self._limits = uploads, limits
        self._catalogue = Catalogue()
        self._busy: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._warming: threading.Thread | None = None

    def voices(self) -> list[Voice]:
        """The voices that can speak here, perhaps after a download."""
        return [voice for voice in self._catalogue.voices() if not voice.missing]

    def every_voice(self) -> list[Voice]:
        """All voices, including those that lack something."""
        return self._catalogue.voices()

    def warm(self) -> None:
        """Load the first voice in the background, so that the first text does not wait for it."""
        self._warming = threading.Thread(target=self._warm, name="voice-warm", daemon=True)
        self._warming.start()

    def close(self) -> None:
        """Wait for what is still warming up: a process that ended meanwhile would abort in its threads."""
        if self._warming is not None:
            self._warming.join()

    def speak(self, script: Script, visitor: str = "") -> Iterator[SpokenText | None]:
        """Speak a script: None after each sentence, then the result. Raises: AvatarError."""
        narrator = Narrator.of(script, self._catalogue, self._limits)
        with self._place(visitor):
            folder = self._uploads.stage()
            try:
                draft, captions = folder / "speech.wav", []
                for said in narrator.write(draft, self._limits):
                    captions.append(said.caption)
                    yield None
                size = draft.stat().st_size
                self._uploads.reserve(size, visitor)
                try:
                    path = self._uploads.place(draft, "speech.wav")
                finally:
                    self._uploads.release(size, visitor)
            except OSError as error:
                raise disk_error(error) from error
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        yield SpokenText(script, path, tuple(captions))

    def sample(
        self, voice: str, speed: float | None = None, visitor: str = ""
    ) -> Iterator[SpokenText | None]:
        """Speak a voice's sample, as speak does. Raises: AvatarError."""
        _, found = self._catalogue.find(voice)
        words = SAMPLES.get(found.language.partition("-")[0], SAMPLES["en"])
        yield from self.speak(Script(words, Speaking(voice=voice, speed=speed or 1.0)), visitor)

    @contextmanager
    def _place(self, visitor: str) -> Iterator[None]:
        with self._lock:
            if self._busy.total() >= AT_ONCE or self._busy[visitor] >= PER_VISITOR:
                raise VoicesBusy
            self._busy[visitor] += 1
        try:
            yield
        finally:
            with self._lock:
                self._busy[visitor] -= 1
                self._busy += Counter()  # drops visitors without a text being spoken

    def _warm(self) -> None:
        try:
            engine, voice = self._catalogue.find(Speaking().voice)
            for _ in engine.synthesise("Ready.", voice.name):
                log.debug("the voice %s is ready", voice.name)
        except AvatarError as error:  # reported again, on a page, when a text needs the voice
            log.warning("no voice is ready: %s", error)
