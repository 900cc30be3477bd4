"""Runs whose text is still being spoken: what can be resumed of them."""

from __future__ import annotations

import logging
from pathlib import Path

from avatar.errors import BadInput
from avatar.long import unfinished
from avatar.runtime.gallery import HALF
from avatar.ui.state.queued_run import QueuedRun
from avatar.ui.state.speech_service import GrowingText, SpeechService

log = logging.getLogger(__name__)


def keep_speech(run: QueuedRun) -> None:
    """Keep the speech with what can be resumed, once its voice has ended."""
    voice, half = run.voice, run.draft / HALF
    if not isinstance(voice, GrowingText) or not half.is_dir():
        return
    voicing = voice.voicing

    def complete() -> None:
        if voicing.is_whole:
            try:
                unfinished.complete(half, voicing.wav, voicing.journal)
            except OSError as error:  # a resumed video's text is spoken once more then
                log.info("the speech is not kept with its video: %s", type(error).__name__)

    voicing.when_over(complete)


def spoken_again(service: SpeechService | None, draft: Path, visitor: str) -> GrowingText | None:
    """The voice of a text that had not been spoken to its end when its video was ended; else None.

    Raises: AvatarError.
    """
    script = unfinished.script_of(draft / HALF)
    if script is None:
        return None
    if service is None:
        raise BadInput("This video's text cannot be spoken here.", "Make it anew.")
    return service.begin_again(script, visitor)
