"""What happens when something on the page is pressed, changed or opened; Generate itself is in generate/."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from avatar.errors import AvatarError, BadInput
from avatar.events import Notice
from avatar.media.speech_reader import Speech
from avatar.preset import Preset
from avatar.runtime.gallery import owner_hash
from avatar.settings import FORM, refusal
from avatar.ui.compare import compare_section
from avatar.ui.compare.compare_panel import ComparePanel
from avatar.ui.components import PageComponents
from avatar.ui.error_messages import reports_errors
from avatar.ui.generate.generate import STATUS_EVERY_S, Generate, Updates
from avatar.ui.generate.status_html import Status, render_notices, render_status
from avatar.ui.jobs.jobs_panel import JobsPanel
from avatar.ui.language import Language, language_of, notice_words, text
from avatar.ui.live import live_tab
from avatar.ui.machine.memory_gauges import render_gauges, render_machine, render_plan
from avatar.ui.payloads import kept, mapping, pressed, text_of
from avatar.ui.portrait import framing_panel, point_editor, speakers_panel
from avatar.ui.presets.choice_cards import Shape, render_examples, render_presets, shortfall_words, size_words
from avatar.ui.presets.model_button import ModelButton
from avatar.ui.presets.settings_form import form_choices
from avatar.ui.routes.request_guard import visitor_of
from avatar.ui.speech.typing_tab import UPLOAD
from avatar.ui.state.app_state import AppState
from avatar.ui.state.machine_presets import flat
from avatar.ui.state.page_runs import PageRuns

TICK_S = 1.0
PLAYED_BY_BROWSERS = (
    ".wav", ".mp3", ".m4a", ".m4b", ".mp4", ".aac", ".ogg", ".oga", ".opus", ".flac", ".webm", ".weba",
)  # fmt: skip
OWNER = re.compile(r"[0-9a-f]{32}")  # the secret by which a browser owns its videos
SHOWN_BY_BROWSERS = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".gif")


def wire(demo: gr.Blocks, parts: PageComponents, app_state: AppState) -> None:
    """Connect every event of the page; called inside the Blocks."""
    p, visits = parts, PageRuns(app_state)
    page = PageCallbacks(parts, app_state, visits)
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
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
        reports_errors(page.portrait_changed), [p.portrait, p.preset, p.points, *form], seen, **queued
    )
    speakers_panel.wire(page.generate.speakers, portrait_seen, queued)
    p.points.input(
        reports_errors(page.framing_changed),
        [p.portrait, p.preset, p.points, *form],
        seen[1:],
        **queued,
        trigger_mode="always_last",
    )
    p.speech.change(reports_errors(page.speech_changed), [p.speech], [p.speech], **queued)
    typing = page.typing
    for source, tab in p.tab.items():
        tab.select(reports_errors(typing.chosen(source)), [p.speech], [p.source, p.speech, p.video], **direct)
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
    p.video.upload(reports_errors(page.video_taken), [p.video], [p.speech], **queued)
    kept = [p.preset, p.prompt, *form]
    keep: dict[str, Any] = {"fn": page.keep, "inputs": [p.saved, *kept], "outputs": [p.saved], **direct}
    chosen = [p.preset, p.presets, *form_parts]
    p.presets.select(reports_errors(page.preset_chosen), [p.shape], chosen, **queued).success(**keep)
    last = {"trigger_mode": "always_last"}  # of changes in quick succession
    gr.on(
        [part.input for part in form],
        reports_errors(page.form_changed),
        [p.preset, p.shape, *form],
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
    loaded.then(reports_errors(page.generate.attach), **{**run, "inputs": [p.owner]})
    more: dict[str, Any] = {"trigger_mode": "multiple"}  # also while the page follows another run
    p.several.upload(
        reports_errors(page.jobs.queue_several),
        [p.several, *page.generate.inputs],
        [p.jobs, p.points, p.status],
        **{**queued, **more},
    ).then(reports_errors(page.generate.attach_next), **{**run, **more, "inputs": [p.owner]})
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
    p.gallery.submit(reports_errors(page.generate.resume), **{**run, **more, "inputs": [p.owner]})
    p.gallery.select(reports_errors(page.gallery_pressed), [p.owner, p.shape], [p.gallery, *chosen], **queued)
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
            **self._chosen(name, language, mapping(saved.get("settings"))),
            p.prompt: self._prompt(name, text_of(saved.get("prompt"))),
            p.status: render_status(Status(), language),
            p.gauges: render_gauges(app_state.gauges.read(), language),
            p.gallery: self.generate.gallery(owner, language),
            p.owner: owner,
            p.saved: kept(saved, owner, FORM),
            **self.typing.opened(language),
            **self.generate.inputs_again(owner),
            **self.live.opened(language),
            p.model: self.model.render(request),
        }

    def closed(self, request: gr.Request) -> None:
        """The page was closed; its runs go on for as long as the host allows."""
        self.app_state.owners.page_closed(request.session_hash or "")

    def portrait_changed(
        self, request: gr.Request, portrait: str | None, name: str, before: Any, *values: Any
    ) -> Iterator[Updates]:
        """Check the portrait at once: show what the video will show, and ask for points if need be."""
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
        preset = self._with_form(name, values) or self._resolved(name)[0]
        look = point_editor.look_at(path, self.app_state.examples, limits, preset=preset, reader=reader)
        question = point_editor.question(look, path, language, preset.engine, before)
        shape = framing_panel.shape_of(question["value"], framing_panel.picture_settings(question["value"]))
        yield {p.points: question, **self._seen(shape, look.notices, name, values, language)}

    def framing_changed(
        self, request: gr.Request, portrait: str | None, name: str, value: Any, *values: Any
    ) -> Updates:
        """Update the page after another face, crop or shape, or a moved point. Raises: BadInput."""
        if not portrait:
            return {self.parts.points: gr.skip()}
        language, value = language_of(request), mapping(value)
        picture_settings, points = framing_panel.picture_settings(value), framing_panel.answer(value)
        shape, placed = framing_panel.shape_of(value, picture_settings), framing_panel.placed(value)
        preset = self._with_form(name, values) or self._resolved(name)[0]
        reader, limits = self.app_state.reader(visitor_of(request)), self.app_state.limits
        notices = point_editor.concerns_about(
            Path(portrait), picture_settings, points, preset, limits, reader
        )
        seen = self._seen(shape, notices, name, values, language)
        return {self.parts.points: gr.update(placed=placed), **seen}

    def speech_changed(self, request: gr.Request, speech: str | None) -> Iterator[Updates]:
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

    def preset_chosen(self, request: gr.Request, event: gr.EventData, shape: Shape | None) -> Updates:
        """A card was pressed: its settings fill the form."""
        _, name = pressed(event)
        self.app_state.machine.preset(name)
        chosen = self._chosen(name, language_of(request), shape=shape)
        return {**chosen, self.parts.prompt: self._prompt(name)}

    def form_changed(self, request: gr.Request, name: str, shape: Shape | None, *values: Any) -> Updates:
        """The plan of the current settings, or what is wrong with them."""
        return {self.parts.plan: self._plan(name, values, language_of(request), shape)}

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

    def gallery_pressed(
        self, request: gr.Request, event: gr.EventData, owner: str, shape: Shape | None
    ) -> Updates:
        """Handle "Use these settings" and delete."""
        p, app_state, language = self.parts, self.app_state, language_of(request)
        action, id = pressed(event)
        if action == "delete":
            app_state.delete(id, owner)
            return {p.gallery: self.generate.gallery(owner, language)}
        entry = app_state.gallery.get(id, app_state.owner(owner))
        if entry is None or action != "use":
            raise BadInput(text("gone", language))
        settings = dict(entry.about.settings)
        name = settings.pop("preset", "")
        if name not in [preset.name for preset in app_state.presets]:
            name = app_state.preset_name
        gr.Info(text("used_settings", language))
        return {
            **self._chosen(name, language, settings, shape),
            p.prompt: self._prompt(name, text_of(settings.get("prompt"))),
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

    def _seen(
        self,
        shape: Shape | None,
        notices: tuple[Notice, ...],
        name: str,
        values: tuple[Any, ...],
        language: Language,
    ) -> Updates:
        """What the page shows about a portrait that was checked; shape: None without a portrait."""
        p = self.parts
        return {
            p.shape: shape,
            p.presets: self._cards(name, language, shape),
            p.plan: self._plan(name, values, language, shape),
            p.notices: render_notices(notices, language),
        }

    def _cards(self, name: str, language: Language, shape: Shape | None) -> str:
        found = self.app_state.machine.verdicts()
        return render_presets(self.app_state.presets, found, name, self._auto(), language, shape)

    def _chosen(
        self,
        name: str,
        language: Language,
        settings: Mapping[str, Any] | None = None,
        shape: Shape | None = None,
    ) -> Updates:
        """The page for a chosen preset; settings: what to fill in instead of the preset's own values."""
        p = self.parts
        resolved, offered = self._resolved(name)
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
            p.presets: self._cards(name, language, shape),
            **form,
            p.form_note: note,
            p.pose: gr.update(visible=not refusal(resolved.engine, "pose")),
            p.plan: self._plan(name, list(values.values()), language, shape),
        }

    def _resolved(self, name: str) -> tuple[Preset, set[str]]:
        """What a preset resolves to (itself if it cannot run), and which settings its form offers."""
        try:
            resolved = self.app_state.machine.resolved(name)
        except AvatarError:  # shown by the card and the plan
            resolved = self.app_state.machine.preset(name)
        return resolved, self.app_state.machine.honoured(resolved)

    def _auto(self) -> Preset | None:
        """What `auto` resolves to here."""
        auto = next((preset for preset in self.app_state.presets if preset.engine == "auto"), None)
        return None if auto is None else self._resolved(auto.name)[0]

    def _prompt(self, name: str, value: str | None = None) -> Any:
        """The prompt box; its placeholder is the preset's own prompt, which is used if the box is empty."""
        resolved, offered = self._resolved(name)
        own = {"placeholder": resolved.generation.prompt} if resolved.generation.prompt else {}
        return gr.update(visible="prompt" in offered, **own, **({} if value is None else {"value": value}))

    def _with_form(self, name: str, values: Sequence[Any]) -> Preset | None:
        """The preset with the form's values; None if they are invalid, which the plan reports."""
        try:
            return self.app_state.machine.with_settings(name, self.app_state.machine.form_settings(name, values))
        except AvatarError:
            return None

    def _plan(self, name: str, values: Sequence[Any], language: Language, shape: Shape | None) -> str:
        try:
            preset = self.app_state.machine.with_settings(name, self.app_state.machine.form_settings(name, values))
        except AvatarError as error:
            return render_plan(None, language, str(error))
        plan, refusal = self.app_state.machine.plan(preset)
        if refusal and language != "en":
            shortfalls = self.app_state.machine.verdict(preset).shortfalls
            refusal = " ".join(shortfall_words(shortfall, language) for shortfall in shortfalls) or refusal
        return render_plan(plan, language, refusal, size_words(preset, language, shape) if shape else "")


def _usable(preset: Preset, name: str, chosen: Any, own: Any) -> Any:
    """A setting's kept value, or the preset's own if the kept one is invalid."""
    try:
        return own if chosen is None else flat(preset.with_settings(**{name: chosen}))[name]
    except BadInput:  # kept by an earlier version, or tampered with
        return own
