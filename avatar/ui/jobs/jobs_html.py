"""HTML of one owner's jobs: running, waiting, finished, failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from avatar.ui.generate.status_html import place_words
from avatar.ui.html import tag
from avatar.ui.language import Language, text


@dataclass(frozen=True)
class JobRow:
    """One job, as its row shows it. state: as QueuedRun's. place: 1 is next. share: fraction made, 0 to 1.

    seconds: of the finished video, 0 for none; video: its URL; taken: that of the file
    to download; download: its name. reason: why it failed.
    on_stage: whether this page's player shows it.
    """

    id: str
    state: str
    name: str
    place: int = 0
    share: float = 0.0
    eta_s: float | None = None
    seconds: float = 0.0
    video: str = ""
    taken: str = ""
    download: str = ""
    reason: str = ""
    can_resume: bool = False
    on_stage: bool = False


def render_jobs(jobs: Sequence[JobRow], language: Language) -> str:
    """A list: the running job, the waiting ones in order, then the ended; "" without jobs."""
    if not jobs:
        return ""
    waiting = [job.id for job in jobs if job.state == "waiting"]
    rows = "".join(_row(job, waiting, language) for job in _ordered(jobs))
    bell = tag(
        "button",
        escape(text("notify_ask", language)),
        type="button",
        class_="jobs-notify",
        hidden=True,
        aria_pressed="false",
        data_on=text("notify_on", language),
        data_off=text("notify_ask", language),
        data_blocked=text("notify_blocked", language),
    )
    head = tag("div", tag("h2", escape(text("jobs", language))) + bell, class_="jobs-head")
    return head + tag("ol", rows, class_="job-list", aria_label=text("jobs", language))


def _ordered(jobs: Sequence[JobRow]) -> list[JobRow]:
    order = {"running": 0, "waiting": 1}
    return sorted(jobs, key=lambda job: (order.get(job.state, 2), job.place))


def _row(job: JobRow, waiting: Sequence[str], language: Language) -> str:
    movable = job.state == "waiting" and len(waiting) > 1
    grip = tag("span", "⠿", class_="job-grip", aria_hidden="true", title=text("job_drag", language))
    words = tag("strong", escape(job.name), title=job.name)
    words += tag("span", escape(_state(job, language)), class_="job-state")
    if job.reason:
        words += tag("span", escape(job.reason), class_="job-reason")
    bar = ""
    if job.state == "running":
        fill = tag("i", style=f"width:{100 * job.share:.1f}%")
        bar = tag("div", fill, class_="bar", data_busy=None if job.share else "yes", aria_hidden="true")
    done = {"done": "notify_done", "failed": "notify_failed"}.get(job.state)
    return tag(
        "li",
        (grip if movable else "")
        + tag("div", words + bar, class_="job-words")
        + tag("div", _buttons(job, waiting, movable, language), class_="job-buttons"),
        class_="job",
        data_id=job.id,
        data_state=job.state,
        data_name=job.name,
        data_news=text(done, language) if done else None,
        draggable="true" if movable else None,
    )


def _state(job: JobRow, language: Language) -> str:
    match job.state:
        case "waiting":
            return place_words(job.place - 1, language)
        case "running":
            made = text("job_running", language, percent=round(100 * job.share))
            left = "" if job.eta_s is None else text("eta", language, s=max(1, round(job.eta_s)))
            return " · ".join(filter(None, (made, left)))
    state = {"done": "job_done", "stopped": "job_stopped", "failed": "job_failed"}[job.state]
    length = text("video_length", language, s=f"{job.seconds:.1f}") if job.seconds else ""
    return " · ".join(filter(None, (text(state, language), length)))


def _buttons(job: JobRow, waiting: Sequence[str], movable: bool, language: Language) -> str:
    made = ""
    if movable:
        place = waiting.index(job.id)
        made += _button("up", "↑", "job_up", job, language, to=place - 1, off=place == 0)
        made += _button("down", "↓", "job_down", job, language, to=place + 1, off=place == len(waiting) - 1)
    if job.state in ("running", "waiting"):
        if job.state == "running" and not job.on_stage:
            made += _button("watch", text("job_watch", language), "job_watch", job, language)
        stop = "stop" if job.state == "running" else "job_remove"
        return made + _button("stop", text(stop, language), stop, job, language)
    if job.can_resume:
        made += _button("resume", text("gallery_resume", language), "gallery_resume", job, language)
    if job.video:
        play = text("gallery_replay", language)
        made += _button("play", play, "gallery_replay", job, language, src=job.video)
        made += tag("a", escape(text("gallery_download", language)), href=job.taken, download=job.download)
    return made + _button("dismiss", "×", "job_dismiss", job, language)


def _button(
    action: str,
    words: str,
    label: str,
    job: JobRow,
    language: Language,
    *,
    to: int | None = None,
    off: bool = False,
    src: str | None = None,
) -> str:
    """label: the key of what a screen reader says, before the job's name."""
    return tag(
        "button",
        escape(words),
        type="button",
        disabled=off,
        aria_label=f"{text(label, language)}: {job.name}",
        title=text(label, language) if len(words) == 1 else None,
        data_action=action,
        data_id=job.id,
        data_to=to,
        data_src=src,
    )
