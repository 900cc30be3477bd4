"""A recording on the page, or a video whose sound is taken: checked as soon as it is there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gradio as gr

from avatar.media.speech_reader import Speech
from avatar.ui.components import STATUS_EVERY_S, PageComponents, Updates
from avatar.ui.language import language_of, notice_words, text
from avatar.ui.routes.request_guard import visitor_of
from avatar.ui.state.app_state import AppState

PLAYED_BY_BROWSERS = (
    ".wav", ".mp3", ".m4a", ".m4b", ".mp4", ".aac", ".ogg", ".oga", ".opus", ".flac", ".webm", ".weba",
)  # fmt: skip


class RecordingPanel:
    """Handlers of the recording; each takes the request first."""

    def __init__(self, parts: PageComponents, app_state: AppState) -> None:
        self.parts, self.app_state = parts, app_state

    def changed(self, request: gr.Request, speech: str | None) -> Iterator[Updates]:
        """Check a recording as soon as it is uploaded, as Generate will. Raises: BadInput."""
        if not speech:
            yield {self.parts.speech: gr.skip()}
            return
        path, reader = Path(speech), self.app_state.reader(visitor_of(request))
        if path.suffix.lower() not in PLAYED_BY_BROWSERS:
            yield from self.video_taken(request, speech)  # whose value fires this event again
            return
        for _ in reader.ahead(None, path, STATUS_EVERY_S):
            yield {self.parts.speech: gr.skip()}
        self._show_notices(request, reader.judge(path, name=path.name, limits=self.app_state.limits))
        yield {self.parts.speech: gr.skip()}

    def video_taken(self, request: gr.Request, video: str | None) -> Iterator[Updates]:
        """Take the sound of a video, or of any file, in a format that browsers play. Raises: BadInput."""
        if not video:
            yield {self.parts.speech: gr.skip()}
            return
        path, reader = Path(video), self.app_state.reader(visitor_of(request))
        if path.suffix.lower() not in PLAYED_BY_BROWSERS:
            for _ in reader.ahead(None, path, STATUS_EVERY_S):
                yield {self.parts.speech: gr.skip()}
            heard = path.with_suffix(".wav")  # next to the upload, and removed with it
            self._show_notices(
                request, reader.speech(path, heard, name=path.name, limits=self.app_state.limits)
            )
            path = heard
        yield {self.parts.speech: str(path)}

    def _show_notices(self, request: gr.Request, speech: Speech) -> None:
        """Show a recording's notices as toasts."""
        language = language_of(request)
        for one in speech.notices:
            words = notice_words(one.code, one.text, one.values, language)
            gr.Info(words, title=text("notices", language))
