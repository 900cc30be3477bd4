"""The gallery on the page: what an owner sees of it, and its buttons."""

from __future__ import annotations

import gradio as gr

from avatar.errors import BadInput
from avatar.ui.components import PageComponents, Updates
from avatar.ui.gallery.gallery_html import render_gallery
from avatar.ui.language import Language, language_of, text
from avatar.ui.payloads import pressed, text_of
from avatar.ui.presets.choice_cards import Shape
from avatar.ui.presets.preset_panel import PresetPanel
from avatar.ui.state.app_state import AppState


def gallery_html(app_state: AppState, owner: str, language: Language) -> str:
    """The gallery as this owner may see it."""
    entries = app_state.gallery.entries(app_state.owner(owner))
    reports = {entry.id: report for entry in entries if (report := entry.run_report()) is not None}
    return render_gallery(entries, language, app_state.url, app_state.gallery.max_age_s, reports)


class GalleryPanel:
    """Handlers of the gallery; each takes the request first."""

    def __init__(self, parts: PageComponents, app_state: AppState, presets: PresetPanel) -> None:
        self.parts, self.app_state, self.presets = parts, app_state, presets

    def pressed(
        self,
        request: gr.Request,
        event: gr.EventData,
        owner: str,
        shape: Shape | None,
        num_speakers: int,
    ) -> Updates:
        """Handle "Use these settings" and delete."""
        p, app_state, language = self.parts, self.app_state, language_of(request)
        action, id = pressed(event)
        if action == "delete":
            app_state.delete(id, owner)
            return {p.gallery: gallery_html(app_state, owner, language)}
        entry = app_state.gallery.get(id, app_state.owner(owner))
        if entry is None or action != "use":
            raise BadInput(text("gone", language))
        settings = dict(entry.about.settings)
        name = settings.pop("preset", "")
        if name not in [preset.name for preset in app_state.presets]:
            name = app_state.preset_name
        gr.Info(text("used_settings", language))
        return {
            **self.presets.chosen(name, language, settings, shape, num_speakers),
            p.prompt: self.presets.prompt(name, text_of(settings.get("prompt"))),
        }
