"""Visitors' texts, spoken on the server: the speech becomes an upload, as if they had recorded it."""

from __future__ import annotations

import logging
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from avatar.errors import AvatarError
from avatar.media.atomic import disk_error
from avatar.media.limits import InputLimits
from avatar.request import Caption
from avatar.settings import Speaking
from avatar.speech.catalogue import Catalogue
from avatar.speech.narration import Narrator, Script
from avatar.speech.voices import Voice
from avatar.speech.voicing import Voicing
from avatar.ui.state.uploads import Uploads

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


@dataclass(frozen=True)
class GrowingText:
    """A script that a slow voice is still speaking, while its video is made. folder: of the voice's files."""

    script: Script
    voicing: Voicing
    folder: Path

    @property
    def path(self) -> Path:
        """Where the sound grows."""
        return self.voicing.wav

    @property
    def shown(self) -> tuple[Caption, ...]:
        """The captions to show in its video, without times."""
        return self.voicing.outline

    def cancel(self) -> None:
        """Let the voice end after its sentence."""
        self.voicing.cancel()

    def close(self) -> None:
        """Let the voice end after its sentence, and its files be removed then."""
        self.voicing.cancel()
        self.voicing.when_over(partial(shutil.rmtree, self.folder, ignore_errors=True))


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

    def begin(
        self, script: Script, visitor: str, may_grow: Callable[[Narrator], bool]
    ) -> Iterator[SpokenText | GrowingText | None]:
        """Begin to speak a script: None now and then, then the result. Raises: AvatarError.

        may_grow: whether the video may begin before a slow voice has ended. The caller closes a GrowingText.
        """
        narrator = Narrator.of(script, self._catalogue, self._limits)
        grows, handed_over = may_grow(narrator), False
        growing = self._begun(narrator, script, visitor)
        try:
            for _ in growing.voicing.wait(grows):
                yield None
            if growing.voicing.is_whole:
                yield self._placed(growing, visitor)
            else:
                handed_over = True
                yield growing
        finally:
            if not handed_over:
                growing.close()

    def begin_again(self, script: Script, visitor: str) -> GrowingText:
        """Speak a script for a video that is resumed, from its first sentence on. Raises: AvatarError."""
        growing = self._begun(Narrator.of(script, self._catalogue, self._limits), script, visitor)
        try:
            for _ in growing.voicing.wait(may_grow=True):
                log.debug("a text is spoken once more")
        except BaseException:
            growing.close()
            raise
        return growing

    def _begun(self, narrator: Narrator, script: Script, visitor: str) -> GrowingText:
        """A voice that has begun; it holds the visitor's place until it has ended. Raises: AvatarError."""
        self._take_place(visitor)
        folder = self._uploads.stage()
        try:
            voicing = Voicing(narrator, folder, self._limits)
        except BaseException as error:
            self._leave_place(visitor)
            shutil.rmtree(folder, ignore_errors=True)
            raise disk_error(error) from error
        voicing.when_over(lambda: self._leave_place(visitor))
        return GrowingText(script, voicing, folder)

    def _placed(self, growing: GrowingText, visitor: str) -> SpokenText:
        """A text that is spoken to its end, among the uploads. Raises: AvatarError."""
        try:
            size = growing.voicing.spoken.stat().st_size
            self._uploads.reserve(size, visitor)
            try:
                path = self._uploads.place(growing.voicing.spoken, "speech.wav")
            finally:
                self._uploads.release(size, visitor)
        except OSError as error:
            raise disk_error(error) from error
        return SpokenText(growing.script, path, growing.voicing.captions)

    def keep_when_over(self, growing: GrowingText, visitor: str, act: Callable[[SpokenText], None]) -> None:
        """Keep what a growing text becomes, to be heard on the page; act is called with it if it is whole."""

        def keep() -> None:
            try:
                if growing.voicing.is_whole:
                    act(self._placed(growing, visitor))
            except AvatarError as error:  # it has no room; the video has its own
                log.info("a text's sound is not kept: %s", error.message)

        growing.voicing.when_over(keep)

    def sample(
        self, voice: str, speed: float | None = None, visitor: str = ""
    ) -> Iterator[SpokenText | None]:
        """Speak a voice's sample, as speak does. Raises: AvatarError."""
        _, found = self._catalogue.find(voice)
        words = SAMPLES.get(found.language.partition("-")[0], SAMPLES["en"])
        yield from self.speak(Script(words, Speaking(voice=voice, speed=speed or 1.0)), visitor)

    @contextmanager
    def _place(self, visitor: str) -> Iterator[None]:
        self._take_place(visitor)
        try:
            yield
        finally:
            self._leave_place(visitor)

    def _take_place(self, visitor: str) -> None:
        """Raises: VoicesBusy."""
        with self._lock:
            if self._busy.total() >= AT_ONCE or self._busy[visitor] >= PER_VISITOR:
                raise VoicesBusy
            self._busy[visitor] += 1

    def _leave_place(self, visitor: str) -> None:
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
