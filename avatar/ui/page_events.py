"""The page's events, connected to what the panels do; and what concerns the whole page."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from typing import Any

import gradio as gr

from avatar.errors import BadInput
from avatar.runtime.gallery import owner_hash
from avatar.settings import FORM
from avatar.ui.compare import compare_section
from avatar.ui.compare.compare_panel import ComparePanel
from avatar.ui.components import PageComponents, Updates
from avatar.ui.error_messages import reports_errors
from avatar.ui.gallery.gallery_panel import GalleryPanel, gallery_html
from avatar.ui.generate.generate import Generate
from avatar.ui.generate.status_html import Status, render_status
from avatar.ui.jobs.jobs_panel import JobsPanel
from avatar.ui.language import language_of, text
from avatar.ui.live import live_tab
from avatar.ui.machine.memory_gauges import render_gauges, render_machine
from avatar.ui.payloads import kept, mapping, pressed, text_of
from avatar.ui.portrait.portrait_panel import PortraitPanel
from avatar.ui.presets.choice_cards import render_examples
from avatar.ui.presets.model_button import ModelButton
from avatar.ui.presets.preset_panel import PresetPanel
from avatar.ui.speakers import speakers_section
from avatar.ui.speech.recording_panel import RecordingPanel
from avatar.ui.speech.typing_tab import UPLOAD
from avatar.ui.state.app_state import AppState
from avatar.ui.state.page_runs import PageRuns

TICK_S = 1.0
OWNER = re.compile(r"[0-9a-f]{32}")  # the secret by which a browser owns its videos


def wire(demo: gr.Blocks, parts: PageComponents, app_state: AppState) -> None:
    """Connect every event of the page; called inside the Blocks."""
    p, visits = parts, PageRuns(app_state)
    page = PageCallbacks(parts, app_state, visits)
    # No component hears of an event's progress: each would draw itself anew, many of them every second.
    quiet: dict[str, Any] = {
        "show_progress": "hidden",
        "show_progress_on": [],
        "api_visibility": "private",
    }
    direct = {**quiet, "queue": False}  # runs at once, but an error would not be shown
    queued = {**quiet, "concurrency_limit": None}
    form = list(p.form.values())
    form_parts = [p.prompt, *form, p.form_note, p.plan, p.pose]

    opened = [
        p.machine,
        p.examples,
        p.preset,
        p.presets,
        *form_parts,
        p.status,
        p.gauges,
        p.gallery,
        p.owner,
        p.saved,
        p.voice,
        p.captions,
        p.model,
        p.live_panel,
        p.live_ticket,
        p.portrait,
        p.speech,
    ]
    loaded = demo.load(reports_errors(page.opened), [p.saved], opened, **direct)
    demo.unload(page.closed)
    seen = [p.portrait, p.points, p.shape, p.presets, p.plan, p.notices]
    portrait_seen = p.portrait.change(
        reports_errors(page.portrait.changed),
        [p.portrait, p.preset, p.points, p.live_open, *form],
        seen,
        **queued,
    )
    speakers_section.wire(page.generate.speakers, page.presets, portrait_seen, queued)
    p.points.input(
        reports_errors(page.portrait.framing_changed),
        [p.portrait, p.preset, p.points, p.num_speakers, *form],
        seen[1:],
        **queued,
        trigger_mode="always_last",
    )
    p.speech.change(reports_errors(page.recording.changed), [p.speech], [p.speech], **queued)
    typing = page.typing
    outputs = [p.source, p.live_open, p.speech, p.video, p.several]
    for source, tab in p.tab.items():
        tab.select(reports_errors(typing.chosen(source)), [p.speech], outputs, **direct)
    p.speak.click(
        reports_errors(typing.hear),
        typing.inputs[1:],
        [p.speech, p.spoken],
        **{**queued, "show_progress": "minimal", "show_progress_on": [p.speak]},
    )
    p.sample.click(
        reports_errors(typing.sample),
        [p.voice, p.speed],
        [p.sample_sound],
        **{**queued, "show_progress": "minimal", "show_progress_on": [p.sample]},
    )
    live_tab.wire(page.live, parts, queued)
    compare_section.wire(ComparePanel(parts, app_state, page.generate), queued)
    p.video.upload(reports_errors(page.recording.video_taken), [p.video], [p.speech], **queued)
    kept = [p.preset, p.prompt, *form]
    keep: dict[str, Any] = {"fn": page.keep, "inputs": [p.saved, *kept], "outputs": [p.saved], **direct}
    chosen = [p.preset, p.presets, *form_parts]
    pressed_in = [p.shape, p.num_speakers]
    p.presets.select(reports_errors(page.presets.card_pressed), pressed_in, chosen, **queued).success(**keep)
    last = {"trigger_mode": "always_last"}  # of changes in quick succession
    gr.on(
        [part.input for part in form],
        reports_errors(page.presets.form_changed),
        [p.preset, p.shape, p.num_speakers, *form],
        [p.plan],
        **direct,
        **last,
    )
    gr.on([part.input for part in (p.prompt, *form)], **keep, **last)

    press = reports_errors(page.generate.press)
    run: dict[str, Any] = {
        "inputs": page.generate.inputs,
        "outputs": page.generate.outputs,
        "show_progress": "minimal",
        "show_progress_on": [p.status],
        "concurrency_limit": None,
        "api_visibility": "private",
    }
    p.generate.click(press, **run)
    loaded.then(reports_errors(page.run_view.attach), **{**run, "inputs": [p.owner]})
    more: dict[str, Any] = {"trigger_mode": "multiple"}  # also while the page follows another run
    p.several.upload(
        reports_errors(page.jobs.queue_several),
        [p.several, *page.generate.inputs],
        [p.jobs, p.points, p.status],
        **{**queued, **more},
    ).then(reports_errors(page.run_view.attach_next), **{**run, **more, "inputs": [p.owner]})
    p.jobs.select(reports_errors(page.jobs.pressed), [p.owner], [p.jobs], **queued, **more)
    p.jobs.submit(reports_errors(page.jobs.submitted), **{**run, **more, "inputs": [p.owner]})
    fill = p.examples.select(
        reports_errors(page.example_chosen),
        None,
        [p.portrait, p.speech, p.points, p.source, p.tabs],
        **queued,
    )
    fill.success(press, **run)
    p.stop.click(reports_errors(page.stop_pressed), None, [p.stop], **direct)
    p.replay.click(page.replay, None, [p.live, p.final, p.replay], **direct)
    p.live.end(page.replay, None, [p.live, p.final, p.replay], **direct)
    p.gallery.submit(reports_errors(page.run_view.resume), **{**run, **more, "inputs": [p.owner]})
    used = [p.owner, p.shape, p.num_speakers]
    p.gallery.select(
        reports_errors(page.gallery.pressed), used, [p.gallery, *chosen], **queued, **more
    )
    p.model.select(reports_errors(page.model_pressed), None, [p.model], **queued)
    gr.Timer(TICK_S).tick(page.tick, [p.owner], [p.gauges, p.model, p.jobs], **direct)


class PageCallbacks:
    """Handlers of the page's events; each takes the request first, and returns updates by component."""

    def __init__(self, parts: PageComponents, app_state: AppState, visits: PageRuns) -> None:
        self.parts = parts
        self.app_state = app_state
        self.visits = visits
        self.generate = Generate(parts, app_state, visits)
        self.typing = self.generate.typing
        self.jobs = JobsPanel(parts, app_state, self.generate)
        self.live = live_tab.LivePanel(parts, app_state)
        self.run_view = self.generate.run_view
        self.presets = PresetPanel(parts, app_state)
        self.portrait = PortraitPanel(parts, app_state, self.presets)
        self.recording = RecordingPanel(parts, app_state)
        self.gallery = GalleryPanel(parts, app_state, self.presets)
        self.model = ModelButton(app_state)

    def opened(self, request: gr.Request, saved: Mapping[str, Any] | None) -> Updates:
        """Fill in everything that depends on the machine, the language, or what this browser kept."""
        p, app_state, language = self.parts, self.app_state, language_of(request)
        saved = mapping(saved)
        owner = saved.get("owner")
        if not isinstance(owner, str) or not OWNER.fullmatch(owner):
            owner = secrets.token_hex(16)
        app_state.owners.presence.opened(request.session_hash or "", owner_hash(owner))
        known = [preset.name for preset in app_state.presets]
        name = saved["preset"] if saved.get("preset") in known else app_state.preset_name
        return {
            p.machine: render_machine(app_state.machine.inventory(), language),
            p.examples: render_examples(app_state.examples.pairs, language, app_state.root),
            **self.presets.chosen(name, language, mapping(saved.get("settings"))),
            p.prompt: self.presets.prompt(name, text_of(saved.get("prompt"))),
            p.status: render_status(Status(), language),
            p.gauges: render_gauges(app_state.gauges.read(), language),
            p.gallery: gallery_html(app_state, owner, language),
            p.owner: owner,
            p.saved: kept(saved, owner, FORM),
            **self.typing.opened(language),
            **self.run_view.inputs_again(owner),
            **self.live.opened(language),
            p.model: self.model.render(request),
        }

    def closed(self, request: gr.Request) -> None:
        """The page was closed; its runs go on for as long as the host allows."""
        self.app_state.owners.page_closed(request.session_hash or "")

    def keep(self, saved: Mapping[str, Any] | None, name: str, prompt: str, *values: Any) -> dict[str, Any]:
        """Update what this browser remembers."""
        now = {"preset": name, "prompt": prompt, "settings": dict(zip(FORM, values))}
        return kept(now, text_of(mapping(saved).get("owner")), FORM)

    def example_chosen(self, request: gr.Request, event: gr.EventData) -> Updates:
        """Fill in a bundled portrait and speech; Generate starts next."""
        p, pairs = self.parts, self.app_state.examples.pairs
        _, id = pressed(event)
        if not id.isdecimal() or len(id) > 4 or int(id) >= len(pairs):
            raise BadInput(text("gone", language_of(request)))
        number = int(id)
        return {
            p.portrait: str(pairs[number].portrait),
            p.speech: gr.update(value=str(pairs[number].speech), visible=True),
            p.source: UPLOAD,
            p.tabs: gr.Tabs(selected=UPLOAD),
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

    def tick(self, request: gr.Request, owner: str) -> Updates:
        self.app_state.owners.presence.seen(owner_hash(owner))
        gauges = render_gauges(self.app_state.gauges.read(), language_of(request))
        return {
            self.parts.gauges: gauges,
            self.parts.model: self.model.render(request),
            self.parts.jobs: self.jobs.render(request, owner),
        }

    def model_pressed(self, request: gr.Request, event: gr.EventData) -> Updates:
        """Start, pause or resume the download of the model."""
        return {self.parts.model: self.model.pressed(request, event)}
