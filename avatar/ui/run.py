"""One press of Generate, from its inputs to the finished file: events in, updates of the page out."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from avatar.errors import BadInput, Cancelled
from avatar.events import Finished, Notice, PartDone, Phase, Progress, Segment
from avatar.ui import framing_panel, point_editor
from avatar.ui.app_state import AppState
from avatar.ui.components import PageComponents
from avatar.ui.guard import visitor_of
from avatar.ui.i18n import Language, language_of, text
from avatar.ui.job_queue import KeptVideo, QueuedRun, WaitingInLine
from avatar.ui.panels.gallery import render_gallery
from avatar.ui.panels.status import Status, render_badge, render_notices, render_status
from avatar.ui.payloads import mapping, pressed
from avatar.ui.speakers import SpokenText
from avatar.ui.typing_panel import TYPE, TypingPanel

log = logging.getLogger(__name__)

STATUS_EVERY_S = 0.4  # the least time between two redraws of the status; also how soon a cancel is seen
LEAD_SEGMENTS = 2  # released together: with one alone the player would run dry at once

Updates = dict[Any, Any]


class PageRuns:
    """Which run belongs to which open page."""

    def __init__(self, app_state: AppState) -> None:
        self.app_state = app_state
        self._runs: dict[str, QueuedRun] = {}

    def begin(self, visit: str, run: QueuedRun) -> None:
        """A page's new run; an older one of the same page is stopped."""
        self.stop(visit)
        self._runs[visit] = run

    def is_current(self, visit: str, run: QueuedRun) -> bool:
        return self._runs.get(visit) is run

    def stop(self, visit: str) -> None:
        """Stop the page's run, if it has one."""
        run = self._runs.get(visit)
        if run is not None:
            self.app_state.job_queue.stop(run)

    def end(self, visit: str, run: QueuedRun) -> None:
        """The page is done with the run, or gone."""
        self.app_state.job_queue.stop(run)
        run.let_go()
        if self.is_current(visit, run):
            del self._runs[visit]


class Generate:
    """The handler of Generate."""

    def __init__(self, parts: PageComponents, app_state: AppState, visits: PageRuns) -> None:
        self.parts = parts
        self.typing = TypingPanel(parts, app_state)
        self.app_state = app_state
        self.visits = visits

    @property
    def inputs(self) -> list[Any]:
        p = self.parts
        typed = self.typing.inputs
        return [p.portrait, p.speech, p.prompt, p.preset, p.points, p.owner, *typed, *p.form.values()]

    @property
    def outputs(self) -> list[Any]:
        p = self.parts
        player = [p.badge, p.empty, p.live, p.final, p.result, p.replay, p.download]
        typed = [p.speech, p.spoken]
        return [p.status, p.generate, p.stop, *player, p.notices, p.points, p.gallery, *typed]

    def press(self, request: gr.Request, *values: Any) -> Iterator[Updates]:
        """Updates of the page until the video is finished. values: of `inputs`. Raises: AvatarError."""
        portrait, speech, prompt, preset, asked, owner, source, *typed_and_form = values
        typed, form = typed_and_form[:5], typed_and_form[5:]
        asked = mapping(asked)
        language = language_of(request)
        if not portrait:
            raise BadInput(text("no_portrait", language))
        visitor = visitor_of(request)
        self.app_state.job_queue.check_room(visitor)
        said: SpokenText | None = None
        if source == TYPE:
            for said in self.typing.spoken_text(request, *typed):
                yield {self.parts.status: gr.skip()} if said is None else self.typing.heard(said)
            speech = str(said.path) if said else None
        if not speech:
            raise BadInput(text("no_speech", language))
        reader = self.app_state.reader(visitor)
        for _ in reader.ahead(Path(portrait), Path(speech), STATUS_EVERY_S):
            yield {self.parts.status: gr.skip()}  # so that a page that has gone away gives its place up
        if self.app_state.resolved(preset).engine == "preview" and not _answers(asked, portrait):
            look = point_editor.look_at(
                Path(portrait), self.app_state.examples, self.app_state.limits, reader=reader
            )
            question = point_editor.question(look, Path(portrait), language, before=asked)
            if look.asks:
                gr.Warning(text(f"points_{look.verdict}", language), title=text("points_title", language))
                yield {self.parts.points: question}
                return
            asked = question["value"]
        run = self.app_state.submit(
            Path(portrait),
            Path(speech),
            preset,
            self.app_state.form_settings(preset, form),
            prompt=prompt or "",
            face_points=framing_panel.answer(asked),
            head_only=point_editor.head_only(asked),
            picture=framing_panel.wish(asked),
            owner=owner,
            visitor=visitor,
            speech_name=said.script.title if said else None,
            captions=said.shown if said else (),
            spoken=said.script.digest if said else "",
            burn_captions=said is not None and said.script.speaking.captions == "burned",
        )
        yield from self._show(run, request, owner)

    def resume(self, request: gr.Request, event: gr.EventData, owner: str) -> Iterator[Updates]:
        """Go on with an unfinished video of the gallery, pressed there. Raises: AvatarError."""
        run = self.app_state.resume(pressed(event)[1], owner, visitor_of(request))
        yield from self._show(run, request, owner)

    def _show(self, run: QueuedRun, request: gr.Request, owner: str) -> Iterator[Updates]:
        visit, language = request.session_hash or "", language_of(request)
        self.visits.begin(visit, run)
        try:
            yield from self._follow(run, visit, owner, language)
        finally:
            self.visits.end(visit, run)

    def _follow(self, run: QueuedRun, visit: str, owner: str, language: Language) -> Iterator[Updates]:
        p = self.parts
        status = Status("running", Progress(Phase.LOADING))
        held: list[Segment] = []  # the first ones, until they go out together
        released = 0
        drawn = time.monotonic()
        yield self._begin(status, language)
        kept: KeptVideo | None = None
        failure: BaseException | None = None
        try:
            for said in run.follow(STATUS_EVERY_S):
                match said:
                    case WaitingInLine(place):
                        status = replace(status, state="waiting" if place else "running", place=place)
                    case Progress():
                        label = getattr(run.engine, "label", "") or status.label
                        status = replace(status, state="running", progress=said, label=label)
                        if time.monotonic() - drawn < STATUS_EVERY_S:
                            continue
                    case Notice():
                        status = status.with_notice(said)
                        yield {p.notices: render_notices(status.notices, language)}
                        continue
                    case Segment():
                        held.append(said)
                        if released or len(held) == LEAD_SEGMENTS:
                            for segment in held:
                                badge = render_badge(status.label, language)
                                yield {p.live: str(segment.path), p.badge: badge}
                            released += len(held)
                            held = []
                        continue
                    case PartDone():
                        continue  # the next Progress counts it
                    case KeptVideo():
                        kept = said
                        break
                    case None:
                        pass
                drawn = time.monotonic()
                yield {p.status: gr.skip() if said is None else render_status(status, language)}
        except Cancelled:
            pass  # its user stopped it before there was a frame: nothing to keep, nothing wrong
        except Exception as error:
            failure = error
        if not self.visits.is_current(visit, run):
            return  # the page has gone on to another run
        for segment in held:
            yield {p.live: str(segment.path)}
        yield self._end(kept, status, failure, owner, language)
        if failure is not None or (kept is not None and kept.error is not None):
            raise failure or kept.error  # type: ignore[misc, union-attr]

    def _begin(self, status: Status, language: Language) -> Updates:
        p = self.parts
        return {
            p.status: render_status(status, language),
            p.generate: gr.update(interactive=False),
            p.stop: gr.update(interactive=True),
            p.badge: "",
            p.empty: gr.update(visible=False),
            p.live: gr.Video(value=None, streaming=True, visible=True),
            p.final: gr.update(value=None, visible=False),
            p.result: gr.update(visible=False),
            p.replay: gr.update(visible=True),  # within the result, for as long as the live player stays
            p.notices: render_notices(status.notices, language),
        }

    def _end(
        self,
        kept: KeptVideo | None,
        status: Status,
        failure: BaseException | None,
        owner: str,
        language: Language,
    ) -> Updates:
        p = self.parts
        over: Updates = {p.generate: gr.update(interactive=True), p.stop: gr.update(interactive=False)}
        if kept is None:
            state = "failed" if failure is not None else "stopped"
            more = "" if failure is not None else text("phase_stopped_empty", language)
            over[p.status] = render_status(replace(status, state=state, more=more), language)
            over[p.gallery] = self.gallery(owner, language)  # a half-made video may be there now
            return over | {p.live: gr.update(visible=False), p.empty: gr.update(visible=True)}
        state = "failed" if kept.error else "stopped" if kept.finished.stopped else "done"
        done = replace(
            status, state=state, label=kept.entry.about.label, progress=_last(status, kept.finished)
        )
        video = str(self.app_state.handed_out(kept.entry))
        return over | {
            p.status: render_status(done, language),
            p.badge: render_badge(done.label, language),
            p.final: gr.update(value=video),
            p.download: gr.update(value=video),
            p.result: gr.update(visible=True),
            p.gallery: self.gallery(owner, language),
        }

    def gallery(self, owner: str, language: Language) -> str:
        """The gallery as this page may see it."""
        app_state = self.app_state
        entries = app_state.gallery.entries(app_state.owner(owner))
        reports = {entry.id: report for entry in entries if (report := entry.run_report()) is not None}
        return render_gallery(entries, language, app_state.url, app_state.gallery.max_age_s, reports)


def _last(status: Status, finished: Finished) -> Progress:
    """The last figures, with all frames counted."""
    progress = status.progress
    return replace(progress, frames_done=finished.num_frames, segments_done=progress.num_segments, eta_s=None)


def _answers(asked: Mapping[str, Any], portrait: str) -> bool:
    """Whether the page has looked at this very portrait."""
    return asked.get("for") == Path(portrait).name and asked.get("engine") == "preview"
