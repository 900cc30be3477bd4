"""The choice of a preset: its card, the form that it fills in, and the plan of the current settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from avatar.errors import AvatarError, BadInput
from avatar.preset import Preset
from avatar.settings import FORM, refusal
from avatar.ui.components import PageComponents, Updates
from avatar.ui.language import Language, language_of, text
from avatar.ui.machine.memory_gauges import render_plan
from avatar.ui.payloads import pressed
from avatar.ui.presets.choice_cards import Shape, render_presets, shortfall_words, size_words
from avatar.ui.presets.settings_form import form_choices
from avatar.ui.state.app_state import AppState
from avatar.ui.state.machine_presets import flat


class PresetPanel:
    """Handlers of the cards and of the form; each takes the request first."""

    def __init__(self, parts: PageComponents, app_state: AppState) -> None:
        self.parts, self.app_state, self.machine = parts, app_state, app_state.machine

    def card_pressed(self, request: gr.Request, event: gr.EventData, shape: Shape | None) -> Updates:
        """A card was pressed: its settings fill the form."""
        _, name = pressed(event)
        self.machine.preset(name)
        chosen = self.chosen(name, language_of(request), shape=shape)
        return {**chosen, self.parts.prompt: self.prompt(name)}

    def form_changed(self, request: gr.Request, name: str, shape: Shape | None, *values: Any) -> Updates:
        """The plan of the current settings, or what is wrong with them."""
        return {self.parts.plan: self.plan(name, values, language_of(request), shape)}

    def chosen(
        self,
        name: str,
        language: Language,
        settings: Mapping[str, Any] | None = None,
        shape: Shape | None = None,
    ) -> Updates:
        """The page for a chosen preset; settings: what to fill in instead of the preset's own values."""
        p = self.parts
        resolved, offered = self.resolved(name)
        own = flat(resolved)
        chosen = {key: value for key, value in (settings or {}).items() if key in offered}
        values = {key: _usable(resolved, key, chosen.get(key), own[key]) for key in FORM}
        form = {
            part: gr.update(
                value=values[key],
                visible=key in offered,
                interactive=key in offered,
                **form_choices(key, language),
            )
            for key, part in p.form.items()
        }
        note = "" if set(FORM) <= offered else f'<p class="muted">{text("advanced_unused", language)}</p>'
        return {
            p.preset: name,
            p.presets: self.cards(name, language, shape),
            **form,
            p.form_note: note,
            p.pose: gr.update(visible=not refusal(resolved.engine, "pose")),
            p.plan: self.plan(name, list(values.values()), language, shape),
        }

    def prompt(self, name: str, value: str | None = None) -> Any:
        """The prompt box; its placeholder is the preset's own prompt, which is used if the box is empty."""
        resolved, offered = self.resolved(name)
        own = {"placeholder": resolved.generation.prompt} if resolved.generation.prompt else {}
        return gr.update(visible="prompt" in offered, **own, **({} if value is None else {"value": value}))

    def resolved(self, name: str) -> tuple[Preset, set[str]]:
        """What a preset resolves to (itself if it cannot run), and which settings its form offers."""
        try:
            resolved = self.machine.resolved(name)
        except AvatarError:  # shown by the card and the plan
            resolved = self.machine.preset(name)
        return resolved, self.machine.honoured(resolved)

    def with_form(self, name: str, values: Sequence[Any]) -> Preset | None:
        """The preset with the form's values; None if they are invalid, which the plan reports."""
        try:
            return self._with_values(name, values)
        except AvatarError:
            return None

    def cards(self, name: str, language: Language, shape: Shape | None) -> str:
        found = self.machine.verdicts()
        return render_presets(self.app_state.presets, found, name, self._auto(), language, shape)

    def plan(self, name: str, values: Sequence[Any], language: Language, shape: Shape | None) -> str:
        try:
            preset = self._with_values(name, values)
        except AvatarError as error:
            return render_plan(None, language, str(error))
        plan, refusal = self.machine.plan(preset)
        if refusal and language != "en":
            shortfalls = self.machine.verdict(preset).shortfalls
            refusal = " ".join(shortfall_words(shortfall, language) for shortfall in shortfalls) or refusal
        return render_plan(plan, language, refusal, size_words(preset, language, shape) if shape else "")

    def _auto(self) -> Preset | None:
        """What `auto` resolves to here."""
        auto = next((preset for preset in self.app_state.presets if preset.engine == "auto"), None)
        return None if auto is None else self.resolved(auto.name)[0]

    def _with_values(self, name: str, values: Sequence[Any]) -> Preset:
        return self.machine.with_settings(name, self.machine.form_settings(name, values))


def _usable(preset: Preset, name: str, chosen: Any, own: Any) -> Any:
    """A setting's kept value, or the preset's own if the kept one is invalid."""
    try:
        return own if chosen is None else flat(preset.with_settings(**{name: chosen}))[name]
    except BadInput:  # kept by an earlier version, or tampered with
        return own
