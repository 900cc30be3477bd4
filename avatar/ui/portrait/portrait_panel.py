"""A portrait on the page: checked as soon as it is there, and again when its framing changes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from avatar.events import Notice
from avatar.ui.components import STATUS_EVERY_S, PageComponents, Updates
from avatar.ui.language import Language, language_of
from avatar.ui.notices_html import render_notices
from avatar.ui.payloads import mapping
from avatar.ui.portrait import framing_panel, point_editor
from avatar.ui.presets.choice_cards import Shape
from avatar.ui.presets.preset_panel import PresetPanel
from avatar.ui.routes.request_guard import visitor_of
from avatar.ui.state.app_state import AppState

SHOWN_BY_BROWSERS = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".gif")


class PortraitPanel:
    """Handlers of the portrait; each takes the request first."""

    def __init__(self, parts: PageComponents, app_state: AppState, presets: PresetPanel) -> None:
        self.parts, self.app_state, self.presets = parts, app_state, presets

    def changed(
        self, request: gr.Request, portrait: str | None, name: str, before: Any, live: bool, *values: Any
    ) -> Iterator[Updates]:
        """Check the portrait at once: show what the video will show, and ask for points if need be.

        live: whether the tab Live is open. The engine that is likely to be asked gets ready meanwhile.
        """
        p, language, limits = self.parts, language_of(request), self.app_state.limits
        if not portrait:
            yield {p.points: gr.update(value=None, image=""), **self._seen(None, (), name, values, language)}
            return
        path, reader = Path(portrait), self.app_state.reader(visitor_of(request))
        for _ in reader.ahead(path, None, STATUS_EVERY_S):
            yield {p.points: gr.skip()}  # so that Gradio can end this once the page is gone
        if path.suffix.lower() not in SHOWN_BY_BROWSERS:
            yield {p.portrait: reader.portrait(path, name=path.name, limits=limits).pixels}
            return  # the new value fires this event again
        preset = self.presets.with_form(name, values) or self.presets.resolved(name)[0]
        self.app_state.prepare(reader.portrait(path, name=path.name, limits=limits).pixels, preset, live)
        look = point_editor.look_at(path, self.app_state.examples, limits, preset=preset, reader=reader)
        question = point_editor.question(look, path, language, preset.engine, before)
        shape = framing_panel.shape_of(question["value"], framing_panel.picture_settings(question["value"]))
        yield {p.points: question, **self._seen(shape, look.notices, name, values, language)}

    def framing_changed(
        self,
        request: gr.Request,
        portrait: str | None,
        name: str,
        value: Any,
        num_speakers: int,
        *values: Any,
    ) -> Updates:
        """Update the page after another face, crop or shape, or a moved point. Raises: BadInput."""
        if not portrait:
            return {self.parts.points: gr.skip()}
        language, value = language_of(request), mapping(value)
        picture_settings, points = framing_panel.picture_settings(value), framing_panel.answer(value)
        shape, placed = framing_panel.shape_of(value, picture_settings), framing_panel.placed(value)
        preset = self.presets.with_form(name, values, num_speakers) or self.presets.resolved(name)[0]
        reader, limits = self.app_state.reader(visitor_of(request)), self.app_state.limits
        notices = point_editor.concerns_about(
            Path(portrait), picture_settings, points, preset, limits, reader
        )
        seen = self._seen(shape, notices, name, values, language, num_speakers)
        return {self.parts.points: gr.update(placed=placed), **seen}

    def _seen(
        self,
        shape: Shape | None,
        notices: tuple[Notice, ...],
        name: str,
        values: tuple[Any, ...],
        language: Language,
        num_speakers: int = 1,
    ) -> Updates:
        """What the page shows about a portrait that was checked; shape: None without a portrait."""
        p = self.parts
        return {
            p.shape: shape,
            p.presets: self.presets.cards(name, language, shape, num_speakers),
            p.plan: self.presets.plan(name, values, language, shape, num_speakers),
            p.notices: render_notices(notices, language),
        }
