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

    def card_pressed(
        self, request: gr.Request, event: gr.EventData, shape: Shape | None, num_speakers: int
    ) -> Updates:
        """A card was pressed: its settings fill the form."""
        _, name = pressed(event)
        self.machine.preset(name)
        chosen = self.chosen(name, language_of(request), shape=shape, num_speakers=num_speakers)
        return {**chosen, self.parts.prompt: self.prompt(name)}

    def form_changed(
        self, request: gr.Request, name: str, shape: Shape | None, num_speakers: int, *values: Any
    ) -> Updates:
        """The plan of the current settings, or what is wrong with them."""
        return {self.parts.plan: self.plan(name, values, language_of(request), shape, num_speakers)}

    def speakers_changed(
        self, language: Language, name: str, shape: Shape | None, num_speakers: int, values: Sequence[Any]
    ) -> Updates:
        """The cards and the plan once so many faces speak."""
        p = self.parts
        return {
            p.num_speakers: num_speakers,
            p.presets: self.cards(name, language, shape, num_speakers),
            p.plan: self.plan(name, values, language, shape, num_speakers),
        }

    def chosen(
        self,
        name: str,
        language: Language,
        settings: Mapping[str, Any] | None = None,
        shape: Shape | None = None,
        num_speakers: int = 1,
    ) -> Updates:
        """The page for a chosen preset; settings: what to fill in instead of the preset's own values."""
        p = self.parts
        resolved, offered = self.resolved(name, num_speakers)
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
            p.presets: self.cards(name, language, shape, num_speakers),
            **form,
            p.form_note: note,
            p.pose: gr.update(visible=not refusal(resolved.engine, "pose")),
            p.plan: self.plan(name, list(values.values()), language, shape, num_speakers),
        }

    def prompt(self, name: str, value: str | None = None) -> Any:
        """The prompt box; its placeholder is the preset's own prompt, which is used if the box is empty."""
        resolved, offered = self.resolved(name)
        own = {"placeholder": resolved.generation.prompt} if resolved.generation.prompt else {}
        return gr.update(visible="prompt" in offered, **own, **({} if value is None else {"value": value}))

    def resolved(self, name: str, num_speakers: int = 1) -> tuple[Preset, set[str]]:
        """What a preset resolves to (itself if it cannot run), and which settings its form offers."""
        try:
            resolved = self.machine.resolved(name, num_speakers)
        except AvatarError:  # shown by the card and the plan
            resolved = self.machine.preset(name)
        return resolved, self.machine.honoured(resolved)

    def with_form(self, name: str, values: Sequence[Any], num_speakers: int = 1) -> Preset | None:
        """The preset with the form's values; None if they are invalid, which the plan reports."""
        try:
            return self._with_values(name, values, num_speakers)
        except AvatarError:
            return None

    def cards(
        self, name: str, language: Language, shape: Shape | None, num_speakers: int = 1
    ) -> str:
        found, auto = self.machine.verdicts(num_speakers), self._auto(num_speakers)
        return render_presets(self.app_state.presets, found, name, auto, language, shape)

    def plan(
        self,
        name: str,
        values: Sequence[Any],
        language: Language,
        shape: Shape | None,
        num_speakers: int = 1,
    ) -> str:
        try:
            preset = self._with_values(name, values, num_speakers)
        except AvatarError as error:
            return render_plan(None, language, str(error))
        plan, refusal = self.machine.plan(preset, num_speakers)
        if refusal and language != "en":
            shortfalls = self.machine.verdict(preset, num_speakers).shortfalls
            refusal = " ".join(shortfall_words(shortfall, language) for shortfall in shortfalls) or refusal
        return render_plan(plan, language, refusal, size_words(preset, language, shape) if shape else "")

    def _auto(self, num_speakers: int) -> Preset | None:
        """What `auto` resolves to here."""
        auto = next((preset for preset in self.app_state.presets if preset.engine == "auto"), None)
        return None if auto is None else self.resolved(auto.name, num_speakers)[0]

    def _with_values(self, name: str, values: Sequence[Any], num_speakers: int) -> Preset:
        given = self.machine.form_settings(name, values, num_speakers)
        return self.machine.with_settings(name, given, num_speakers)


def _usable(preset: Preset, name: str, chosen: Any, own: Any) -> Any:
    """A setting's kept value, or the preset's own if the kept one is invalid."""
    try:
        return own if chosen is None else flat(preset.with_settings(**{name: chosen}))[name]
    except BadInput:  # kept by an earlier version, or tampered with
        return own
