"""The tab Live: its components, and how a session for the page's portrait begins."""

from __future__ import annotations

import html
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from avatar.errors import AvatarError, BadInput
from avatar.live.portrait_intake import moving, open_live_request
from avatar.live.state import LiveState
from avatar.preset import Preset
from avatar.runtime.gallery import owner_hash
from avatar.settings import Picture
from avatar.ui.components import PageComponents, Updates
from avatar.ui.error_messages import message_of, reports_errors
from avatar.ui.gallery.gallery_panel import gallery_html
from avatar.ui.language import Language, browser_table, language_of, text
from avatar.ui.live.live_html import render_live
from avatar.ui.payloads import mapping, pressed
from avatar.ui.portrait import framing_panel, point_editor
from avatar.ui.routes.request_guard import visitor_of
from avatar.ui.state.app_state import AppState
from avatar.ui.theme import script

log = logging.getLogger(__name__)

word: Any = browser_table()



def tab(shown: bool) -> dict[str, Any]:
    """The tab's components."""
    parts: dict[str, Any] = {}
    with gr.Tab(word("source_live"), id="live", elem_id="live-tab", visible=shown) as parts["live_tab"]:
        parts["live_open"] = gr.State(False)  # beside the tab, Gradio would count it as one more
        parts["live_panel"] = gr.HTML(
            "", js_on_load=script("live.js"), apply_default_css=False, elem_id="live-panel"
        )
        parts["live_ticket"] = gr.HTML("", apply_default_css=False, elem_id="live-ticket")
    return parts


def wire(panel: LivePanel, parts: PageComponents, queued: dict[str, Any]) -> None:
    """Connect the tab's events."""
    p = parts
    direct: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "queue": False}
    p.live_tab.select(
        reports_errors(panel.chosen), [p.portrait], [p.live_open, p.speech, p.video], **direct
    )
    p.live_panel.select(
        reports_errors(panel.begin), [p.portrait, p.points, p.owner], [p.live_ticket, p.points], **queued
    )
    p.live_panel.submit(reports_errors(panel.recording_saved), [p.owner], [p.gallery], **queued)


class LivePanel:
    """Handlers of the tab; each takes the request first."""

    def __init__(self, parts: PageComponents, app_state: AppState) -> None:
        self.parts, self.app_state = parts, app_state

    def opened(self, language: Language) -> Updates:
        """The tab in the page's language."""
        state = self.app_state.live
        if state is None:
            return {self.parts.live_panel: "", self.parts.live_ticket: ""}
        voices = [] if self.app_state.speech_service is None else self.app_state.speech_service.voices()
        chat = state.options.chat is not None
        label = "preview" if state.options.preset.engine == "preview" else ""
        return {
            self.parts.live_panel: render_live(
                language,
                voices,
                chat,
                label,
                self.app_state.root,
                state.options.preset.generation.motion,
                state.options.chat_models,
            ),
            self.parts.live_ticket: "",
        }

    def chosen(self, request: gr.Request, portrait: str | None) -> Updates:
        """Hide the pickers for recordings; the next session's engine gets ready for the portrait."""
        p, state = self.parts, self.app_state.live
        path = Path(portrait) if portrait else state.options.portrait if state is not None else None
        if path is not None and state is not None:
            self._prepare(path, visitor_of(request), state)
        return {p.live_open: True, p.speech: gr.update(visible=False), p.video: gr.update(visible=False)}

    def _prepare(self, portrait: Path, visitor: str, state: LiveState) -> None:
        try:
            picture = self.app_state.reader(visitor).portrait(portrait, limits=self.app_state.limits)
        except AvatarError as error:  # reported once a session is asked for
            log.debug("not got ready: %s", error)
            return
        state.prepare(picture.pixels)

    def begin(
        self, request: gr.Request, event: gr.EventData, portrait: str | None, asked: Any, owner: str
    ) -> Updates:
        """Go live with the portrait. Raises: AvatarError."""
        p, language, state = self.parts, language_of(request), self.app_state.live
        action, number = pressed(event)
        if state is None or action != "begin":
            raise BadInput(text("gone", language))
        try:
            preset = moving(state.options.preset, mapping(event._data).get("motion"))
            return self._begun(request, language, portrait, mapping(asked), owner, number, preset)
        except AvatarError as error:
            return {p.live_ticket: _ticket(number, error=message_of(error, language))}

    def recording_saved(self, request: gr.Request, owner: str) -> Updates:
        """Show the gallery again, which has a new recording."""
        return {self.parts.gallery: gallery_html(self.app_state, owner, language_of(request))}

    def _begun(
        self,
        request: gr.Request,
        language: Language,
        portrait: str | None,
        asked: Mapping[str, Any],
        owner: str,
        number: str,
        preset: Preset,
    ) -> Updates:
        p, app_state, state = self.parts, self.app_state, self.app_state.live
        assert state is not None
        path = Path(portrait) if portrait else state.options.portrait
        if path is None:
            raise BadInput(text("no_portrait", language))
        visitor = visitor_of(request)
        state.session_queue.check_not_full(visitor)
        reader = app_state.reader(visitor)
        own = Picture() if portrait else state.options.picture
        if own.face:
            asked = {}  # the face was chosen on the server's command line
        elif preset.engine == "preview" and asked.get("for") != path.name:
            look = point_editor.look_at(
                path, app_state.examples, app_state.limits, preset=preset, reader=reader
            )
            question = point_editor.question(look, path, language, before=asked)
            if look.asks:
                reported = _ticket(number, error=text(f"points_{look.verdict}", language))
                return {p.live_ticket: reported, p.points: question}
            asked = question["value"]
        from avatar.preview.face_finder import (
            Finder,  # imports OpenCV and the face models; only for a session
        )

        live = open_live_request(
            path,
            preset,
            app_state.scratch,
            face_points=framing_panel.answer(asked),
            head_only=point_editor.head_only(asked),
            limits=app_state.limits,
            reader=reader,
            picture_settings=framing_panel.picture_settings(asked) if own == Picture() else own,
            finder=Finder(),
        )
        ticket = state.session_queue.ask(live, visitor, owner_hash(owner))
        return {p.live_ticket: _ticket(number, token=ticket.token)}


def _ticket(number: str, token: str = "", error: str = "") -> str:
    """The HTML that the page's script looks for. number: of the press that it answers."""
    reported = html.escape(json.dumps({"number": number, "token": token, "error": error}))
    return f'<i hidden data-ticket="{reported}"></i>'
