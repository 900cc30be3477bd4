"""A run on the page: its events in, updates of the page out, from any moment of it to the finished video."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import replace

import gradio as gr

from avatar.errors import Cancelled
from avatar.events import Finished, Notice, PartDone, Phase, Progress, Segment
from avatar.runtime.gallery import owner_hash
from avatar.ui.components import STATUS_EVERY_S, PageComponents, Updates
from avatar.ui.error_messages import reason
from avatar.ui.gallery.gallery_panel import gallery_html
from avatar.ui.generate.status_html import Status, render_badge, render_status
from avatar.ui.language import Language, language_of, text
from avatar.ui.notices_html import render_notices
from avatar.ui.payloads import pressed
from avatar.ui.routes.request_guard import visitor_of
from avatar.ui.state import submission
from avatar.ui.state.app_state import AppState
from avatar.ui.state.job_queue import KeptVideo, QueuedRun, WaitingInQueue
from avatar.ui.state.page_runs import PageRuns
from avatar.ui.state.uploads import NotUploaded

log = logging.getLogger(__name__)

LEAD_SEGMENTS = 2  # released together: with one alone the player would run dry at once


class RunView:
    """Shows runs on a page; its handlers take the request first."""

    def __init__(self, parts: PageComponents, app_state: AppState, visits: PageRuns) -> None:
        self.parts, self.app_state, self.visits = parts, app_state, visits

    def resume(self, request: gr.Request, event: gr.EventData, owner: str) -> Iterator[Updates]:
        """Resume an unfinished video, on a press in the gallery. Raises: AvatarError."""
        visit = request.session_hash or ""
        run = submission.resume(self.app_state, pressed(event)[1], owner, visitor_of(request), visit)
        self.visits.show(visit, run)
        yield from self.show(run, request, owner)

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
        yield from self.show(run, request, owner, LEAD_SEGMENTS)

    def show(
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
            over[p.gallery] = gallery_html(self.app_state, owner, language)  # unfinished videos, too
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
            p.gallery: gallery_html(self.app_state, owner, language),
        }


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
