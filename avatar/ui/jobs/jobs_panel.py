"""The jobs panel: the state of an owner's runs, and its buttons; several recordings queued at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from avatar.errors import AvatarError, BadInput
from avatar.runtime.gallery import HALF, owner_hash
from avatar.runtime.gallery_entry import stem_of
from avatar.ui.components import PageComponents, Updates
from avatar.ui.error_messages import message_of, reason
from avatar.ui.generate.generate import Generate
from avatar.ui.jobs.jobs_html import JobRow, render_jobs
from avatar.ui.language import Language, language_of, text
from avatar.ui.payloads import mapping, pressed
from avatar.ui.state.app_state import AppState
from avatar.ui.state.job_queue import KeptVideo, QueuedRun, QueueFull
from avatar.ui.theme import script

MOST_SHOWN = 30  # ended jobs


def panel() -> gr.HTML:
    """The component; its value is HTML, which the panel's script draws."""
    return gr.HTML(
        "",
        html_template='<div class="jobs-panel"></div>',
        js_on_load=script("jobs.js"),
        apply_default_css=False,
        elem_id="jobs",
    )


class JobsPanel:
    """Handlers of the panel; each takes the request first."""

    def __init__(self, parts: PageComponents, app_state: AppState, generate: Generate) -> None:
        self.parts, self.app_state, self.generate = parts, app_state, generate

    def render(self, request: gr.Request, owner: str) -> str:
        """The panel as this owner may see it."""
        language, shown = language_of(request), self.generate.visits.shown(request.session_hash or "")
        jobs, ended = [], 0
        for run in self.app_state.job_queue.runs(owner_hash(owner)):
            ended += run.outcome is not None
            if run.outcome is None or (ended <= MOST_SHOWN and not self._is_deleted(run)):
                jobs.append(self._job(run, run is shown, language))
        return render_jobs(jobs, language)

    def _is_deleted(self, run: QueuedRun) -> bool:
        """Whether a run's video was deleted in the gallery."""
        return isinstance(run.outcome, KeptVideo) and not run.outcome.entry.folder.is_dir()

    def _job(self, run: QueuedRun, on_stage: bool, language: Language) -> JobRow:
        progress, video, taken, download, seconds = run.progress, "", "", "", 0.0
        if isinstance(run.outcome, KeptVideo):
            entry = run.outcome.entry
            video = self.app_state.url(entry.id, entry.video.name)
            taken = self.app_state.url(entry.id, entry.taken.name)
            download, seconds = entry.download_name, entry.about.duration_s
        made = progress.frames_done / progress.num_frames if progress and progress.num_frames else 0.0
        return JobRow(
            id=run.id,
            state=run.state,
            name=f"{stem_of(run.request.portrait_name)} · {stem_of(run.request.speech_name)}",
            place=run.place,
            share=made,
            eta_s=progress.eta_s if progress else None,
            seconds=seconds,
            video=video,
            taken=taken,
            download=download,
            reason="" if run.error is None else reason(run.error, language),
            can_resume=run.outcome is not None and (self.app_state.gallery.folder / run.id / HALF).is_dir(),
            on_stage=on_stage,
        )

    def pressed(self, request: gr.Request, event: gr.EventData, owner: str) -> Updates:
        """Stop, reorder or hide one of the owner's own jobs. Raises: BadInput."""
        action, id = pressed(event)
        run, queue = self._find(request, id, owner), self.app_state.job_queue
        match action:
            case "stop":
                queue.stop(run)
            case "dismiss":
                queue.forget(run)
            case "move":
                to = mapping(event._data).get("to")
                if type(to) is not int:
                    raise BadInput(text("value_not_understood", language_of(request)))
                queue.move(run, to)
        return {self.parts.jobs: self.render(request, owner)}

    def submitted(self, request: gr.Request, event: gr.EventData, owner: str) -> Iterator[Updates]:
        """Resume a job, or show it in the page's player. Raises: AvatarError."""
        action, id = pressed(event)
        if action == "resume":
            yield from self.generate.run_view.resume(request, event, owner)
        else:
            yield from self.generate.run_view.watch(request, self._find(request, id, owner), owner)

    def _find(self, request: gr.Request, id: str, owner: str) -> QueuedRun:
        run = self.app_state.job_queue.find(id, owner_hash(owner))
        if run is None:
            raise BadInput(text("job_gone", language_of(request)))
        return run

    def queue_several(
        self, request: gr.Request, speeches: Sequence[str] | None, *values: Any
    ) -> Iterator[Updates]:
        """Queue one job per recording; name the unusable ones. values: of Generate.inputs."""
        language, p, owner = language_of(request), self.parts, values[5]
        if not values[0]:
            raise BadInput(text("no_portrait", language))
        full: QueueFull | None = None
        queued = 0
        for speech in speeches or []:
            try:
                run = yield from self.generate.submit(request, speech, *values)
            except QueueFull as error:
                full = error
                break
            except AvatarError as error:
                gr.Warning(message_of(error, language), title=Path(speech).name)
                continue
            if run is None:
                return  # the page first asks about the portrait
            run.let_go()
            queued += 1
            yield {p.jobs: self.render(request, owner)}
        if full is not None:
            some = text("several_some", language, queued=queued, total=len(speeches or []))
            gr.Warning(f"{some} {message_of(full, language)}", title=text("jobs", language))
        yield {p.jobs: self.render(request, owner)}
