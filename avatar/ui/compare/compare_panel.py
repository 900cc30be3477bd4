"""Compare: two videos, chosen or made for the comparison, and the table of their measures."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from avatar.compare.result import DONE, Comparison, Row
from avatar.errors import BadInput, Cancelled
from avatar.events import Phase, Progress
from avatar.runtime.gallery import GalleryEntry
from avatar.runtime.report_columns import row as run_columns
from avatar.settings import FORM
from avatar.ui.compare.compare_choices import (
    chosen_settings,
    finished,
    labels,
    own_value,
    read_pair,
    setting_choices,
    value_choices,
    video_choices,
)
from avatar.ui.compare.compare_html import PlayedVideo, render_note, render_players, render_table
from avatar.ui.components import STATUS_EVERY_S, PageComponents, Updates
from avatar.ui.gallery.gallery_panel import gallery_html
from avatar.ui.generate.generate import Generate, drawn_for, of_portrait
from avatar.ui.language import Language, language_of, text
from avatar.ui.payloads import mapping
from avatar.ui.portrait import point_editor
from avatar.ui.presets.settings_form import leading_pose
from avatar.ui.routes.request_guard import visitor_of
from avatar.ui.speech.typing_tab import TYPE
from avatar.ui.state import submission
from avatar.ui.state.app_state import AppState
from avatar.ui.state.job_queue import KeptVideo, QueuedRun, WaitingInQueue
from avatar.ui.state.machine_presets import flat
from avatar.ui.state.speech_service import SpokenText

LETTERS = ("A", "B")
MOST_MEASURED_S = 300.0  # a longer one would keep a core busy for a quarter of an hour



class ComparePanel:
    """Handlers of the section Compare; each takes the request first."""

    def __init__(self, parts: PageComponents, app_state: AppState, generate: Generate) -> None:
        self.parts, self.app_state, self.generate = parts, app_state, generate
        self._stops: dict[str, threading.Event] = {}  # of comparisons under way, by page

    @property
    def offer_inputs(self) -> list[Any]:
        p, c = self.parts, self.parts.compare
        return [p.owner, p.preset, c["a"], c["b"], c["differs"]]

    @property
    def offer_outputs(self) -> list[Any]:
        c = self.parts.compare
        return [c["a"], c["b"], c["differs"], c["value_a"], c["value_b"]]

    @property
    def make_inputs(self) -> list[Any]:
        c = self.parts.compare
        return [c["differs"], c["value_a"], c["value_b"], *self.generate.inputs]

    @property
    def outputs(self) -> list[Any]:
        p, c = self.parts, self.parts.compare
        ours = [c[name] for name in ("go", "make", "stop", "note", "players", "table")]
        return [*ours, p.points, p.gallery, p.speech, p.spoken]

    def offered(self, request: gr.Request, owner: str, preset: str, a: str, b: str, differs: str) -> Updates:
        """Update the choices after the gallery or the preset has changed."""
        c, language = self.parts.compare, language_of(request)
        videos = finished(self.app_state.gallery.entries(self.app_state.owner(owner)))
        choices, ids = video_choices(videos, language), [entry.id for entry in videos]
        if a not in ids or b not in ids:  # the last two, in the order in which they were made
            a, b = (ids[1], ids[0]) if len(ids) > 1 else (ids[0] if ids else "", "")
        settings = setting_choices(self.app_state, preset, language)
        names = [name for _, name in settings]
        chosen: Updates = {
            c["a"]: gr.update(choices=choices, value=a or None),
            c["b"]: gr.update(choices=choices, value=b or None),
            c["differs"]: gr.update(choices=settings, value=differs if differs in names else names[1]),
        }
        if differs in names:
            return chosen
        own = flat(self.app_state.machine.resolved(preset))  # the form may not be filled in yet
        return chosen | self.differs(request, names[1], preset, *(own[name] for name in FORM))

    def differs(self, request: gr.Request, name: str, preset: str, *form: Any) -> Updates:
        """Update the values to choose from for a setting, with the current one and another preselected."""
        c = self.parts.compare
        choices = value_choices(self.app_state, name, language_of(request))
        own = own_value(self.app_state, preset, form, name)
        others = [value for _, value in choices if value != own]
        return {
            c["value_a"]: gr.update(choices=choices, value=own or None),
            c["value_b"]: gr.update(choices=choices, value=others[-1] if others else None),
        }

    def stop(self, request: gr.Request) -> Updates:
        """Stop this page's comparison."""
        stopped = self._stops.get(request.session_hash or "")
        if stopped is not None:
            stopped.set()
        return {self.parts.compare["stop"]: gr.update(interactive=False)}

    def compare(self, request: gr.Request, a: str, b: str, owner: str) -> Iterator[Updates]:
        """Show and measure two videos of the visitor's own. Raises: AvatarError."""
        language, gallery = language_of(request), self.app_state.gallery
        if not a or not b:
            raise BadInput(text("compare_two", language))
        if a == b:
            raise BadInput(text("compare_same", language))
        pair = [gallery.get(id, self.app_state.owner(owner)) for id in (a, b)]
        entries = [entry for entry in pair if entry is not None and entry.about.duration_s]
        if len(entries) < 2:
            raise BadInput(text("gone", language))
        yield from self._stoppable(request, lambda stopped: self._shown(request, entries, stopped))

    def make(self, request: gr.Request, differs: str, a: str, b: str, *values: Any) -> Iterator[Updates]:
        """Make two videos that differ in a setting, one by one, then compare them. Raises: AvatarError."""
        portrait, speech, prompt, preset, asked, owner, source, *typed_and_form = values
        typed, form = typed_and_form[:5], typed_and_form[5:]
        language, visit = language_of(request), request.session_hash or ""
        cells = read_pair(self.app_state, differs, (a, b), language)
        wanted = [chosen_settings(self.app_state, preset, form, cell) for cell in cells]
        several, own = self.generate.speaking(values, language)
        count = several.num_speakers if several else 1
        with_settings = self.app_state.machine.with_settings
        presets = [with_settings(name, settings, count) for name, settings in wanted]  # errors come first
        if not portrait:
            raise BadInput(text("no_portrait", language))
        said = (yield from self._spoken(request, typed)) if source == TYPE and not own else None
        heard = None if own else str(said.path) if said else speech
        if not heard and not own:
            raise BadInput(text("no_speech", language))
        recordings = [Path(heard)] if heard else []
        recordings += several.recordings if several else ()
        draws = several is None and any(one.engine == "preview" for one in presets)
        asked = yield from self._looked(request, Path(portrait), recordings, mapping(asked), draws)
        given: dict[str, Any] = {
            "prompt": prompt or "",
            **of_portrait(asked, several is not None),
            "owner": owner,
            "visitor": visitor_of(request),
            "visit": visit,
        }
        if said is not None:
            given |= {"speech_name": said.script.title, "captions": said.shown, "spoken": said.script.digest}
            given["burn_captions"] = said.script.speaking.captions == "burned"
        runs: list[QueuedRun] = []
        try:
            for (name, settings), preset_made in zip(wanted, presets, strict=True):
                given["pose"] = leading_pose(form, preset_made.engine)
                given["speakers"] = drawn_for(several, preset_made)
                files = Path(portrait), Path(heard) if heard else None
                runs.append(submission.submit(self.app_state, *files, name, settings, **given))
            yield from self._stoppable(request, lambda stopped: self._made(request, runs, owner, stopped))
        except Exception:
            for run in runs:
                self.app_state.job_queue.stop(run)
            raise
        finally:
            for run in runs:
                run.let_go()

    def _spoken(
        self, request: gr.Request, typed: Sequence[Any]
    ) -> Generator[Updates, None, SpokenText | None]:
        """The text of the tab Type, spoken."""
        said: SpokenText | None = None
        for said in self.generate.typing.spoken_text(request, *typed):
            yield {self.parts.points: gr.skip()} if said is None else self.generate.typing.heard(said)
        return said

    def _looked(
        self,
        request: gr.Request,
        portrait: Path,
        recordings: Sequence[Path],
        asked: dict[str, Any],
        draws: bool,
    ) -> Generator[Updates, None, Mapping[str, Any]]:
        """Decode all in advance; the answer about the face's points, which the page asks for if need be.

        asked: the page's answer so far. draws: whether the preview engine moves one face. Raises: BadInput.
        """
        language, reader = language_of(request), self.app_state.reader(visitor_of(request))
        for recording in recordings:
            for _ in reader.ahead(portrait, recording, STATUS_EVERY_S):
                yield {self.parts.points: gr.skip()}  # so that Gradio can end this once the page is gone
        if not draws or asked.get("for") == portrait.name:
            return asked
        look = point_editor.look_at(portrait, self.app_state.examples, self.app_state.limits, reader=reader)
        question = point_editor.question(look, portrait, language, before=asked)
        if look.asks:
            yield {self.parts.points: question}
            raise BadInput(text(f"points_{look.verdict}", language))
        return mapping(question["value"])

    def _stoppable(
        self, request: gr.Request, work: Callable[[threading.Event], Iterator[Updates]]
    ) -> Iterator[Updates]:
        """The updates of some work and of the buttons; earlier work of the same page is stopped."""
        c, visit, language = self.parts.compare, request.session_hash or "", language_of(request)
        if (earlier := self._stops.get(visit)) is not None:
            earlier.set()
        stopped = self._stops[visit] = threading.Event()
        idle = {c["go"]: gr.update(interactive=True), c["make"]: gr.update(interactive=True)}
        idle[c["stop"]] = gr.update(visible=False)
        try:
            yield {
                c["go"]: gr.update(interactive=False),
                c["make"]: gr.update(interactive=False),
                c["stop"]: gr.update(visible=True, interactive=True),
                c["players"]: "",
                c["table"]: "",
            }
            yield from work(stopped)
            yield {**idle, c["note"]: ""}
        except Cancelled:
            yield {**idle, c["note"]: render_note(text("compare_stopped", language))}
        except Exception:
            yield {**idle, c["note"]: ""}
            raise
        finally:
            if self._stops.get(visit) is stopped:
                del self._stops[visit]

    def _made(
        self, request: gr.Request, runs: Sequence[QueuedRun], owner: str, stopped: threading.Event
    ) -> Iterator[Updates]:
        """Follow the runs, one after the other; then show what they made. Raises: AvatarError."""
        language, entries = language_of(request), []
        for letter, run in zip(LETTERS, runs):
            kept: KeptVideo | None = None
            for reported in run.follow(STATUS_EVERY_S):
                if stopped.is_set():
                    for one in runs:
                        self.app_state.job_queue.stop(one)
                match reported:
                    case KeptVideo():
                        kept = reported
                    case WaitingInQueue() | Progress():
                        yield {self.parts.compare["note"]: _progress_note(letter, reported, language)}
                    case _:
                        yield {self.parts.compare["note"]: gr.skip()}
            yield {self.parts.gallery: gallery_html(self.app_state, owner, language)}
            if kept is not None and kept.error is not None:
                raise kept.error
            if kept is None or stopped.is_set():
                raise Cancelled("Stopped.")
            entries.append(kept.entry)
        yield from self._shown(request, entries, stopped)

    def _shown(
        self, request: gr.Request, entries: Sequence[GalleryEntry], stopped: threading.Event
    ) -> Iterator[Updates]:
        """Show the players and the table as far as it is known at once; then measure each video."""
        c, language, url = self.parts.compare, language_of(request), self.app_state.url
        called = labels(entries[0], entries[1], language)
        rows = [_row(entry, f"{letter} · {name}") for letter, entry, name in zip(LETTERS, entries, called)]
        comparison = Comparison(Path(), rows)
        videos = [
            PlayedVideo(letter, name, url(entry.id, entry.video.name))
            for letter, entry, name in zip(LETTERS, entries, called)
        ]
        yield {
            c["players"]: render_players(videos, language),
            c["table"]: render_table(comparison, language, measuring=True),
        }
        for letter, entry, row in zip(LETTERS, entries, rows):
            yield {c["note"]: render_note(text("compare_measuring", language, letter=letter), busy=True)}
            if entry.about.duration_s > MOST_MEASURED_S:
                most = round(MOST_MEASURED_S / 60)
                comparison.notes.append(text("compare_too_long", language, letter=letter, min=most))
            else:
                try:
                    yield from self._measured(entry, row, visitor_of(request), stopped)
                except BadInput as error:
                    why = error.message  # without its remedy, which is about uploaded files
                    comparison.notes.append(text("compare_not_measured", language, letter=letter, why=why))
            yield {c["table"]: render_table(comparison, language, measuring=row is not rows[-1])}

    def _measured(
        self, entry: GalleryEntry, row: Row, visitor: str, stopped: threading.Event
    ) -> Iterator[Updates]:
        """Fill in a row's measures. Raises: BadInput, Cancelled, Crowded."""
        job = self.app_state.measuring.begin(entry.video, entry.about.duration_s, visitor)
        try:
            while not job.wait(STATUS_EVERY_S):
                if stopped.is_set():
                    raise Cancelled("Stopped.")
                yield {self.parts.compare["note"]: gr.skip()}
            row.measures = job.result()
        finally:
            self.app_state.measuring.leave(job)


def _row(entry: GalleryEntry, label: str) -> Row:
    """What is known of a video before it is measured."""
    report = entry.run_report()
    run = None if report is None else run_columns(report)
    return Row(entry.id, label, state=DONE, file=entry.video.name, run=run, error=entry.about.error)


def _progress_note(letter: str, reported: WaitingInQueue | Progress, language: Language) -> str:
    if isinstance(reported, WaitingInQueue) and reported.place:
        return render_note(text("compare_waiting", language, letter=letter, place=reported.place), busy=True)
    progress = reported if isinstance(reported, Progress) else Progress(Phase.LOADING)
    phase = text(f"phase_{progress.phase}", language)
    if progress.num_frames:
        phase += f", {100 * progress.frames_done // progress.num_frames} %"
    return render_note(text("compare_making", language, letter=letter, phase=phase), busy=True)
