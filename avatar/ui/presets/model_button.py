"""*Get the model*: who may press it, which preset lacks the model, and what a press does."""

from __future__ import annotations

import secrets

import gradio as gr

from avatar.checkpoints.download import lacking_bytes
from avatar.errors import BadInput
from avatar.planning.verdict import within_reach
from avatar.preset import Preset
from avatar.ui.language import language_of, text
from avatar.ui.payloads import pressed
from avatar.ui.presets.choice_cards import preset_title
from avatar.ui.presets.model_html import FETCH, PAUSE, render_model
from avatar.ui.state.app_state import AppState

ADMIN = "admin"  # in the page's address: ?admin=SECRET


class ModelButton:
    """The panel of the missing model."""

    def __init__(self, app_state: AppState) -> None:
        self.app_state = app_state

    def render(self, request: gr.Request) -> str:
        """The panel as it is now; empty if no GPU here could run the model, or if it is downloaded."""
        app_state, language = self.app_state, language_of(request)
        found = app_state.machine.inventory().checkpoint
        wanted = None if found.complete else self._within_reach()
        missing = 0 if wanted is None else lacking_bytes(found)
        title = "" if wanted is None else preset_title(wanted, language)
        return render_model(app_state.model.reading(), title, missing, language, may=self.may(request))

    def pressed(self, request: gr.Request, event: gr.EventData) -> str:
        """Begin, pause or resume the download. Raises: BadInput for a visitor who may not."""
        if not self.may(request):
            raise BadInput(text("model_admin", language_of(request)))
        action, _ = pressed(event)
        if action == FETCH:
            self.app_state.model.start()
        elif action == PAUSE:
            self.app_state.model.pause()
        return self.render(request)

    def may(self, request: gr.Request) -> bool:
        """Whether this visitor may start the download: anyone who opened the page with the admin secret.

        If only this machine can reach the page, everybody may.
        """
        secret = self.app_state.admin
        given = str(request.query_params.get(ADMIN, ""))
        return secret is None or bool(secret and secrets.compare_digest(given.encode(), secret.encode()))

    def _within_reach(self) -> Preset | None:
        """The best preset that the cards could run; None where more than the model is missing."""
        found = within_reach(self.app_state.machine.inventory(), self.app_state.presets)
        if found is None or {shortfall.code for shortfall in found.shortfalls} != {"weights"}:
            return None  # what else is missing comes first; the preset's card names it
        return found.preset
