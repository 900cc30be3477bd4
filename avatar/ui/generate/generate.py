"""One press of Generate, from its inputs to the finished file: events in, updates of the page out."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from avatar.errors import BadInput, Cancelled
from avatar.events import Finished, Notice, PartDone, Phase, Progress, Segment
from avatar.media.speaker_choice import AskedSpeakers
from avatar.preset import Preset
from avatar.runtime.gallery import owner_hash
from avatar.speech.narration import Narrator
from avatar.ui.components import PageComponents
from avatar.ui.error_messages import reason
from avatar.ui.gallery.gallery_html import render_gallery
from avatar.ui.generate.status_html import Status, render_badge, render_notices, render_status
from avatar.ui.language import Language, language_of, text
from avatar.ui.payloads import mapping, pressed
from avatar.ui.portrait import framing_panel, point_editor
from avatar.ui.portrait.speakers_panel import SpeakersPanel
from avatar.ui.presets.settings_form import leading_pose
from avatar.ui.routes.request_guard import visitor_of
from avatar.ui.speech.typing_tab import TYPE, TypingPanel
from avatar.ui.state import submission
from avatar.ui.state.app_state import AppState
from avatar.ui.state.job_queue import KeptVideo, QueuedRun, WaitingInQueue
from avatar.ui.state.page_runs import PageRuns
from avatar.ui.state.speech_service import GrowingText, SpokenText
from avatar.ui.state.uploads import NotUploaded

log = logging.getLogger(__name__)

STATUS_EVERY_S = 0.4  # the least time between two redraws of the status; also how soon a cancel is noticed
LEAD_SEGMENTS = 2  # released together: with one alone the player would run dry at once

Updates = dict[Any, Any]


class Generate:
    """The handler of Generate."""

    def __init__(self, parts: PageComponents, app_state: AppState, visits: PageRuns) -> None:
        self.parts = parts
        self.typing = TypingPanel(parts, app_state)
        self.speakers = SpeakersPanel(parts, app_state)
        self.app_state = app_state
        self.visits = visits

    @property
    def inputs(self) -> list[Any]:
        p = self.parts
        typed = self.typing.inputs
        given = [p.portrait, p.speech, p.prompt, p.preset, p.points, p.owner]
        return [*given, *typed, *p.form.values(), p.pose, *self.speakers.inputs]

    @property
    def outputs(self) -> list[Any]:
        p = self.parts
        player = [p.badge, p.empty, p.live, p.final, p.result, p.replay, p.download]
        typed = [p.speech, p.spoken]
        return [p.status, p.generate, p.stop, *player, p.notices, p.points, p.gallery, *typed]

    def press(self, request: gr.Request, *values: Any) -> Iterator[Updates]:
        """Updates of the page until the video is finished. values: of `inputs`. Raises: AvatarError."""
        portrait, speech, _, _, _, owner, source, *_ = values
        language = language_of(request)
        if not portrait:
            raise BadInput(text("no_portrait", language))
        self.app_state.job_queue.check_not_full(visitor_of(request))
        said: SpokenText | GrowingText | None = None
        several = self._several(values, True, language)
        own = several is not None and not several.split
        if several is not None and not own and source == TYPE:
            raise BadInput(text("speakers_no_text", language))
        if source == TYPE and not own:
            said = yield from self._begun(request, *values)
            speech = str(said.path)
        if not speech and not own:
            raise BadInput(text("no_speech", language))
        kept: list[SpokenText] = []
        try:
            if isinstance(said, GrowingText):
                self.typing.speech_service.keep_when_over(said, visitor_of(request), kept.append)
            run = yield from self.submit(request, None if own else speech, *values, said=said)
        except BaseException:
            if isinstance(said, GrowingText):
                said.close()
            raise
        if run is None:
            if isinstance(said, GrowingText):
                said.close()
            return
        self.visits.begin(request.session_hash or "", run)
        yield from self._show(run, request, owner)
        if kept:
            yield self.typing.heard(kept[0])

    def _begun(self, request: gr.Request, *values: Any) -> Generator[Updates, None, SpokenText | GrowingText]:
        """The tab's text, spoken, or by a slow voice so far that its video can begin. Raises: AvatarError."""
        _, _, _, preset, _, _, _, *typed_and_form = values
        form = typed_and_form[5:]
        has_pose = leading_pose(form, self.app_state.machine.resolved(preset).engine) is not None

        def may_grow(narrator: Narrator) -> bool:
            settings = self.app_state.machine.form_settings(preset, form)
            return not has_pose and submission.may_grow(self.app_state, preset, settings, narrator)

        said: SpokenText | GrowingText | None = None
        for said in self.typing.begun(request, may_grow, *typed_and_form[:5]):
            yield self.typing.heard(said) if isinstance(said, SpokenText) else {self.parts.status: gr.skip()}
        assert said is not None, "a text that is spoken comes last"
        return said

    def submit(
        self,
        request: gr.Request,
        speech: str | None,
        *values: Any,
        said: SpokenText | GrowingText | None = None,
    ) -> Generator[Updates, None, QueuedRun | None]:
        """Queue a run for one speech and the page's other inputs; None if the page asks about the portrait.

        speech: None where faces have recordings of their own. values: of `inputs`. said: the spoken text, if
        the speech was typed. Raises: AvatarError.
        """
        portrait, _, prompt, preset, asked, owner, _, *typed_and_form = values
        asked, form, language = mapping(asked), typed_and_form[5:], language_of(request)
        if not portrait:
            raise BadInput(text("no_portrait", language))
        visitor = visitor_of(request)
        self.app_state.job_queue.check_not_full(visitor)
        several = self._several(values, speech is not None, language)
        if several is not None and not several.split and speech is not None:  # of a row of recordings
            raise BadInput(text("speakers_no_queue", language))
        reader = self.app_state.reader(visitor)
        growing = said if isinstance(said, GrowingText) else None
        recordings: list[Path | None] = [] if speech is None else [None if growing else Path(speech)]
        for recording in (*recordings, *(several.recordings if several else ())):
            for _ in reader.ahead(Path(portrait), recording, STATUS_EVERY_S):
                yield {self.parts.status: gr.skip()}  # so that Gradio can end this once the page is gone
        if (
            several is None
            and self.app_state.machine.resolved(preset).engine == "preview"
            and not _answers(asked, portrait)
        ):
            look = point_editor.look_at(
                Path(portrait), self.app_state.examples, self.app_state.limits, reader=reader
            )
            question = point_editor.question(look, Path(portrait), language, before=asked)
            if look.asks:
                gr.Warning(text(f"points_{look.verdict}", language), title=text("points_title", language))
                yield {self.parts.points: question}
                return None
            asked = question["value"]
        return submission.submit(
            self.app_state,
            Path(portrait),
            None if speech is None else Path(speech),
            preset,
            self.app_state.machine.form_settings(preset, form),
            prompt=prompt or "",
            **_of_portrait(asked, several is not None),
            speakers=_drawn_for(several, self.app_state.machine.resolved(preset)),
            owner=owner,
            visitor=visitor,
            visit=request.session_hash or "",
            speech_name=said.script.title if said else None,
            captions=said.shown if said else (),
            growing=growing,
            spoken=said.script.digest if said else "",
            burn_captions=said is not None and said.script.speaking.captions == "burned",
            pose=leading_pose(form, self.app_state.machine.resolved(preset).engine),
        )

    def _several(self, values: Sequence[Any], recording: bool, language: Language) -> AskedSpeakers | None:
        """Who speaks where several faces do. values: of `inputs`. Raises: BadInput."""
        given = values[len(self.inputs) - len(self.speakers.inputs) :]
        return self.speakers.asked(values[4], given, recording, language)

    def resume(self, request: gr.Request, event: gr.EventData, owner: str) -> Iterator[Updates]:
        """Resume an unfinished video, on a press in the gallery. Raises: AvatarError."""
        visit = request.session_hash or ""
        run = submission.resume(self.app_state, pressed(event)[1], owner, visitor_of(request), visit)
        self.visits.show(visit, run)
        yield from self._show(run, request, owner)

    def attach(self, request: gr.Request, owner: str) -> Iterator[Updates]:
        """Show a page that has just opened what its owner's run is doing."""
        run = self.app_state.owners.run_to_show(owner_hash(owner))
        is_late = self.visits.shown(request.session_hash or "") is not None  # Generate was pressed meanwhile
        if run is None or is_late:
            yield {self.parts.status: gr.skip()}
            return
        yield from self.watch(request, run, owner)

    def attach_next(self, request: gr.Request, owner: str) -> Iterator[Updates]:
        """Let a page that shows no run follow its owner's."""
        run = self.app_state.owners.run_to_show(owner_hash(owner))
        if run is None or run.outcome is not None or self.visits.shown(request.session_hash or ""):
            yield {self.parts.status: gr.skip()}
            return
        yield from self.watch(request, run, owner)

    def inputs_again(self, owner: str) -> Updates:
        """The portrait and the speech of the run that attach will show, where the uploads are still there."""
        p, uploads = self.parts, self.app_state.uploads
        run = self.app_state.owners.run_to_show(owner_hash(owner))
        given: Updates = {}
        try:
            if run is not None and uploads is not None and run.requester.portrait and run.requester.speech:
                given[p.portrait] = str(uploads.find(run.requester.portrait))
                given[p.speech] = gr.update(value=str(uploads.find(run.requester.speech)), visible=True)
        except NotUploaded:
            log.info("the uploads of a run have made way for others")
        return given

    def watch(self, request: gr.Request, run: QueuedRun, owner: str) -> Iterator[Updates]:
        """Show a run from where it is now on, unless the page shows it already."""
        if self.visits.shown(request.session_hash or "") is run:
            yield {self.parts.status: gr.skip()}
            return
        if run.over.is_set() or not run.join():
            yield self._over(run, owner, language_of(request))
            return
        self.visits.show(request.session_hash or "", run)
        yield from self._show(run, request, owner, LEAD_SEGMENTS)

    def _show(
        self, run: QueuedRun, request: gr.Request, owner: str, newest: int | None = None
    ) -> Iterator[Updates]:
        """newest: see QueuedRun.follow."""
        visit = request.session_hash or ""
        try:
            yield from self._follow(run, visit, owner, language_of(request), newest)
        finally:
            self.visits.end(visit, run)

    def _follow(
        self, run: QueuedRun, visit: str, owner: str, language: Language, newest: int | None
    ) -> Iterator[Updates]:
        p = self.parts
        status = _status(run)
        held: list[Segment] = []  # the first segments, until they are released together
        released = 0
        drawn = time.monotonic()
        yield self._working(run) | self._begin(status, language)
        kept: KeptVideo | None = None
        failure: BaseException | None = None
        try:
            for said in run.follow(STATUS_EVERY_S, newest):
                if not self.visits.is_current(visit, run):
                    return  # the page shows another run by now
                match said:
                    case WaitingInQueue(place):
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
                        continue  # the next Progress includes it
                    case KeptVideo():
                        kept = said
                        break
                    case None:
                        pass
                drawn = time.monotonic()
                if said is None:
                    yield {p.status: gr.skip()}
                else:
                    yield {p.status: render_status(status, language), **self._working(run)}
        except Cancelled:
            pass  # its user stopped it before there was a frame: nothing to keep, nothing wrong
        except Exception as error:
            failure = error
        if not self.visits.is_current(visit, run):
            return
        for segment in held:
            yield {p.live: str(segment.path)}
        plays = bool(released or held)
        yield self._end(kept, status, failure, owner, language, plays)
        if failure is not None or (kept is not None and kept.error is not None):
            raise failure or kept.error  # type: ignore[misc, union-attr]

    def _over(self, run: QueuedRun, owner: str, language: Language) -> Updates:
        """Show a run that ended before the page was opened."""
        kept = run.outcome if isinstance(run.outcome, KeptVideo) else None
        status = _status(run)
        if run.error is not None:
            status = replace(status, more=reason(run.error, language))
        failure = run.error if kept is None else None
        return {self.parts.empty: gr.update(visible=False)} | self._end(
            kept, status, failure, owner, language, plays=False
        )

    def _begin(self, status: Status, language: Language) -> Updates:
        p = self.parts
        return {
            p.status: render_status(status, language),
            p.badge: "",
            p.live: gr.Video(value=None, streaming=True, visible=True),
            p.final: gr.update(value=None, visible=False),
            p.replay: gr.update(visible=True),  # inside p.result, as long as the live player is shown
            p.notices: render_notices(status.notices, language),
        }

    def _working(self, run: QueuedRun) -> Updates:
        """How the page looks while a run goes on; sent again with every update.

        Gradio's client applies each diff to the previous message, so one that it has not shown yet is lost if
        the next arrives at once, for instance while the player is still loading.
        """
        p = self.parts
        return {
            p.generate: gr.update(interactive=False),
            p.stop: gr.update(interactive=not run.cancelled.is_set()),
            p.empty: gr.update(visible=False),
            p.live: gr.update(visible=True),
            p.final: gr.update(visible=False),
            p.result: gr.update(visible=False),
        }

    def _end(
        self,
        kept: KeptVideo | None,
        status: Status,
        failure: BaseException | None,
        owner: str,
        language: Language,
        plays: bool,
    ) -> Updates:
        """Show a run's end. plays: the live player has segments, and the finished video then replaces it."""
        p = self.parts
        over: Updates = {p.generate: gr.update(interactive=True), p.stop: gr.update(interactive=False)}
        if kept is None:
            state = "failed" if failure is not None else "stopped"
            more = status.more if failure is not None else text("phase_stopped_empty", language)
            over[p.status] = render_status(replace(status, state=state, more=more), language)
            over[p.gallery] = self.gallery(owner, language)  # an unfinished video may be in it now
            return over | {p.live: gr.update(visible=False), p.empty: gr.update(visible=True)}
        state = "failed" if kept.error else "stopped" if kept.finished.stopped else "done"
        done = replace(
            status, state=state, label=kept.entry.about.label, progress=_last(status, kept.finished)
        )
        entry = kept.entry
        video, taken = (str(self.app_state.handed_out(entry, file)) for file in (entry.video, entry.taken))
        if not plays:
            over |= {p.live: gr.update(visible=False), p.replay: gr.update(visible=False)}
        return over | {
            p.status: render_status(done, language),
            p.badge: render_badge(done.label, language),
            p.final: gr.update(value=video) if plays else gr.update(value=video, visible=True),
            p.download: gr.update(value=taken),
            p.result: gr.update(visible=True),
            p.gallery: self.gallery(owner, language),
        }

    def gallery(self, owner: str, language: Language) -> str:
        """The gallery as this page may see it."""
        app_state = self.app_state
        entries = app_state.gallery.entries(app_state.owner(owner))
        reports = {entry.id: report for entry in entries if (report := entry.run_report()) is not None}
        return render_gallery(entries, language, app_state.url, app_state.gallery.max_age_s, reports)


def _of_portrait(asked: Mapping[str, Any], several: bool) -> dict[str, Any]:
    """What the portrait's panel says of a run. several: the section of speakers says which faces speak."""
    picture = framing_panel.picture_settings(asked)
    if several:
        return {"picture": replace(picture, face="")}
    return {
        "face_points": framing_panel.answer(asked),
        "head_only": point_editor.head_only(asked),
        "picture": picture,
    }


def _drawn_for(several: AskedSpeakers | None, preset: Preset) -> AskedSpeakers | None:
    """The speakers; without the areas that were drawn for them where the engine has no use of areas."""
    if several is None or preset.engine != "preview":
        return several
    return replace(several, speakers=tuple(replace(one, mask=None) for one in several.speakers))


def _status(run: QueuedRun) -> Status:
    """A run's status before its next event."""
    label = run.outcome.entry.about.label if isinstance(run.outcome, KeptVideo) else ""
    return Status(
        state="running" if run.begun or not run.place else "waiting",
        progress=run.progress or Progress(Phase.LOADING),
        place=run.place,
        label=label or getattr(run.engine, "label", ""),
    )


def _last(status: Status, finished: Finished) -> Progress:
    """The last figures, with all frames counted."""
    progress = status.progress
    return replace(progress, frames_done=finished.num_frames, segments_done=progress.num_segments, eta_s=None)


def _answers(asked: Mapping[str, Any], portrait: str) -> bool:
    """Whether the page has checked this same portrait."""
    return asked.get("for") == Path(portrait).name and asked.get("engine") == "preview"
