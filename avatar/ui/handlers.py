"""What happens when something on the page is pressed, changed or opened; Generate itself is in run.py."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from avatar.errors import AvatarError, BadInput
from avatar.media.portrait import open_portrait
from avatar.preset import Preset
from avatar.ui import points
from avatar.ui.faults import told
from avatar.ui.i18n import Language, language_of, text
from avatar.ui.page import Parts
from avatar.ui.panels.cards import lack_words, render_examples, render_presets
from avatar.ui.panels.machine import render_gauges, render_machine, render_plan
from avatar.ui.panels.status import Status, render_status
from avatar.ui.run import Generate, Updates, Visits
from avatar.ui.studio import FORM, Studio, flat

TICK_S = 1.0
SHOWN_BY_BROWSERS = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".gif")


def wire(demo: gr.Blocks, parts: Parts, studio: Studio) -> None:
    """Connect every event of the page; called inside the Blocks."""
    p, visits = parts, Visits(studio)
    page = Page(parts, studio, visits)
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    direct = {**quiet, "queue": False}  # at once; but an error would not be shown
    queued = {**quiet, "concurrency_limit": None}
    form = list(p.form.values())
    form_parts = [p.prompt, *form, p.form_note, p.plan]

    opened = [
        p.machine,
        p.examples,
        p.preset,
        p.presets,
        *form_parts,
        p.status,
        p.gauges,
        p.shelf,
        p.owner,
        p.saved,
    ]
    demo.load(told(page.opened), [p.saved], opened, **direct)
    demo.unload(page.closed)
    p.portrait.change(told(page.portrait_changed), [p.portrait, p.preset], [p.portrait, p.points], **queued)
    p.video.upload(lambda video: video, [p.video], [p.speech], **queued)  # intake takes a video's sound
    kept = [p.preset, p.prompt, *form]
    keep: dict[str, Any] = {"fn": page.keep, "inputs": [p.saved, *kept], "outputs": [p.saved], **direct}
    p.presets.select(told(page.preset_chosen), None, [p.preset, p.presets, *form_parts], **queued).success(
        **keep
    )
    last = {"trigger_mode": "always_last"}  # of quick changes
    gr.on(
        [part.input for part in form], told(page.form_changed), [p.preset, *form], [p.plan], **direct, **last
    )
    gr.on([part.input for part in (p.prompt, *form)], **keep, **last)

    press = told(page.generate.press)
    run: dict[str, Any] = {
        "inputs": page.generate.inputs,
        "outputs": page.generate.outputs,
        "show_progress": "minimal",
        "show_progress_on": [p.status],
        "concurrency_limit": None,
        "api_visibility": "private",
    }
    p.generate.click(press, **run)
    fill = p.examples.select(told(page.example_chosen), None, [p.portrait, p.speech, p.points], **queued)
    fill.success(press, **run)
    p.stop.click(page.stop_pressed, None, [p.stop], **direct)
    p.replay.click(page.replay, None, [p.live, p.final, p.replay], **direct)
    p.live.end(page.replay, None, [p.live, p.final, p.replay], **direct)
    p.shelf.submit(told(page.generate.resume), **{**run, "inputs": [p.owner]})
    p.shelf.select(told(page.shelf_pressed), [p.owner], [p.shelf, p.preset, p.presets, *form_parts], **queued)
    gr.Timer(TICK_S).tick(page.tick, None, [p.gauges], **direct)


class Page:
    """The handlers; each takes the request first, and returns updates by component."""

    def __init__(self, parts: Parts, studio: Studio, visits: Visits) -> None:
        self.parts = parts
        self.studio = studio
        self.visits = visits
        self.generate = Generate(parts, studio, visits)

    def opened(self, request: gr.Request, saved: Mapping[str, Any] | None) -> Updates:
        """Everything that depends on the machine, the language, or what this browser kept."""
        p, studio, language = self.parts, self.studio, language_of(request)
        saved = dict(saved or {})
        owner = str(saved.get("owner") or secrets.token_hex(16))
        known = {preset.name for preset in studio.presets}
        name = saved["preset"] if saved.get("preset") in known else studio.preset_name
        return {
            p.machine: render_machine(studio.inventory(), language),
            p.examples: render_examples(studio.examples.pairs, language, studio.root),
            **self._chosen(name, language, saved.get("settings")),
            p.prompt: self._prompt(name, saved.get("prompt", "")),
            p.status: render_status(Status(), language),
            p.gauges: render_gauges(studio.gauges.read(), language),
            p.shelf: self.generate.shelf(owner, language),
            p.owner: owner,
            p.saved: {**saved, "owner": owner},
        }

    def closed(self, request: gr.Request) -> None:
        """The page is gone: its run ends."""
        self.visits.stop(request.session_hash or "")

    def portrait_changed(self, request: gr.Request, portrait: str | None, preset: str) -> Updates:
        """Look for the face at once, and ask for points if need be."""
        p = self.parts
        if not portrait:
            return {p.points: gr.update(value=None, image="")}
        path = Path(portrait)
        if path.suffix.lower() not in SHOWN_BY_BROWSERS:
            pixels = open_portrait(path, name=path.name, limits=self.studio.limits).pixels
            return {p.portrait: pixels}  # which is a change again
        if self.studio.resolved(preset).engine != "preview":
            return {p.points: gr.update(value=None, image="")}
        look = points.look_at(path, self.studio.examples, self.studio.limits)
        return {p.points: points.question(look, path, language_of(request))}

    def preset_chosen(self, request: gr.Request, event: gr.EventData) -> Updates:
        """A card was pressed: its settings fill the form."""
        name = str(event._data["id"])
        return {**self._chosen(name, language_of(request)), self.parts.prompt: self._prompt(name)}

    def form_changed(self, request: gr.Request, name: str, *values: Any) -> Updates:
        """The plan of the settings as they are now, or what is wrong with them."""
        return {self.parts.plan: self._plan(name, values, language_of(request))}

    def keep(self, saved: Mapping[str, Any] | None, name: str, prompt: str, *values: Any) -> dict[str, Any]:
        """What this browser remembers."""
        settings = dict(zip(FORM, values))
        return {**(saved or {}), "preset": name, "prompt": prompt, "settings": settings}

    def example_chosen(self, request: gr.Request, event: gr.EventData) -> Updates:
        """Fill in a bundled portrait and speech; Generate follows."""
        p, pairs = self.parts, self.studio.examples.pairs
        number = int(event._data["id"])
        if not 0 <= number < len(pairs):
            raise BadInput(text("gone", language_of(request)))
        return {
            p.portrait: str(pairs[number].portrait),
            p.speech: str(pairs[number].speech),
            p.points: gr.update(value=None, image=""),
        }

    def stop_pressed(self, request: gr.Request) -> Updates:
        self.visits.stop(request.session_hash or "")
        return {self.parts.stop: gr.update(interactive=False)}

    def replay(self) -> Updates:
        """The finished video takes the live player's place."""
        p = self.parts
        return {
            p.live: gr.update(visible=False),
            p.final: gr.update(visible=True),
            p.replay: gr.update(visible=False),
        }

    def shelf_pressed(self, request: gr.Request, event: gr.EventData, owner: str) -> Updates:
        """ "Use these settings", or delete."""
        p, studio, language = self.parts, self.studio, language_of(request)
        id = str(event._data["id"])
        mine = None if studio.shared else owner
        if event._data["action"] == "delete":
            studio.gallery.delete(id, mine)
            return {p.shelf: self.generate.shelf(owner, language)}
        entry = next((entry for entry in studio.gallery.entries(mine) if entry.id == id), None)
        if entry is None:
            raise BadInput(text("gone", language))
        settings = dict(entry.about.settings)
        name = str(settings.pop("preset", studio.preset_name))
        gr.Info(text("used_settings", language))
        return {
            **self._chosen(name, language, settings),
            p.prompt: self._prompt(name, settings.get("prompt", "")),
        }

    def tick(self, request: gr.Request) -> Updates:
        return {self.parts.gauges: render_gauges(self.studio.gauges.read(), language_of(request))}

    def _chosen(self, name: str, language: Language, settings: Mapping[str, Any] | None = None) -> Updates:
        """The page for a chosen preset; settings: what to fill in instead of the preset's own values."""
        p, studio = self.parts, self.studio
        found = studio.verdicts()
        resolved, offered = self._resolved(name)
        own = flat(resolved)
        values = {key: (settings or {}).get(key, own[key]) if key in offered else own[key] for key in FORM}
        form = {
            part: gr.update(value=values[key], visible=key in offered, interactive=key in offered)
            for key, part in p.form.items()
        }
        note = "" if set(FORM) <= offered else f'<p class="muted">{text("advanced_unused", language)}</p>'
        return {
            p.preset: name,
            p.presets: render_presets(studio.presets, found, name, self._auto(), language),
            **form,
            p.form_note: note,
            p.plan: self._plan(name, list(values.values()), language),
        }

    def _resolved(self, name: str) -> tuple[Preset, set[str]]:
        """What a chosen preset comes to, and what its form offers; one that cannot run stands for itself."""
        try:
            resolved = self.studio.resolved(name)
        except AvatarError:  # shown by the card and the plan
            resolved = self.studio.preset(name)
        return resolved, self.studio.honoured(resolved)

    def _auto(self) -> Preset | None:
        """What `auto` comes to here."""
        auto = next((preset for preset in self.studio.presets if preset.engine == "auto"), None)
        return None if auto is None else self._resolved(auto.name)[0]

    def _prompt(self, name: str, value: str | None = None) -> Any:
        """The box; greyed in it is the preset's own prompt, which an empty box stands for."""
        resolved, offered = self._resolved(name)
        own = {"placeholder": resolved.generation.prompt} if resolved.generation.prompt else {}
        return gr.update(visible="prompt" in offered, **own, **({} if value is None else {"value": value}))

    def _plan(self, name: str, values: Any, language: Language) -> str:
        try:
            preset = self.studio.with_settings(name, self.studio.form_settings(name, values))
        except AvatarError as error:
            return render_plan(None, language, str(error))
        plan, refusal = self.studio.plan(preset)
        if refusal and language != "en":
            lacks = self.studio.verdict(preset).lacks
            refusal = " ".join(lack_words(lack, language) for lack in lacks) or refusal
        return render_plan(plan, language, refusal)
