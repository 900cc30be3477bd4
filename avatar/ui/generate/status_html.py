"""HTML of a run's status: phase, segment, speed, time left; and of its notices."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from html import escape

from avatar.events import Notice, Phase, Progress
from avatar.geometry import FPS
from avatar.ui.generate.ranks_html import render_ranks
from avatar.ui.html import tag
from avatar.ui.language import Language, text


@dataclass(frozen=True)
class Status:
    """What the status shows. state: idle | waiting | running | done | stopped | failed."""

    state: str = "idle"
    progress: Progress = field(default_factory=lambda: Progress(Phase.QUEUED))
    place: int = 0
    label: str = ""
    more: str = ""
    notices: tuple[Notice, ...] = field(default_factory=tuple)

    def with_notice(self, notice: Notice) -> Status:
        """The notice added, once."""
        return self if notice in self.notices else replace(self, notices=(*self.notices, notice))


def render_status(status: Status, language: Language) -> str:
    """The status panel; screen readers announce only its headline."""
    headline = _headline(status, language)
    badge = render_badge(status.label, language)
    head = tag("strong", escape(headline), role="status") + badge
    more = tag("p", escape(status.more), class_="more") if status.more else ""
    ranks = render_ranks(status.progress, language) if status.state == "running" else ""
    return tag(
        "div",
        tag("div", head, class_="status-head") + more + _bar(status) + _figures(status, language) + ranks,
        class_="status",
        data_state=status.state,
    )


def render_badge(label: str, language: Language) -> str:
    """What kind of output this is; empty for the full model's."""
    if not label:
        return ""
    words = text("preview", language) if label == "preview" else label
    return tag("span", escape(words), class_="badge", title=text("preview_why", language))


def _headline(status: Status, language: Language) -> str:
    match status.state:
        case "idle":
            return text("ready", language)
        case "waiting":
            place = place_words(status.place - 1, language)
            return f"{text('phase_queued', language)}. {place}" if language == "en" else place
        case "running":
            return _doing(status.progress, language)
    return text(f"phase_{status.state}", language)


def _doing(progress: Progress, language: Language) -> str:
    """What the engine does, with the time that this usually takes, if it is known."""
    activity = progress.activity
    words = text(f"activity_{activity}" if activity else f"phase_{progress.phase}", language)
    if progress.usual_s is None:
        return words
    return text("usually", language, words=words, s=max(1, round(progress.usual_s)))


def place_words(ahead: int, language: Language) -> str:
    """How many runs are ahead in the queue, as text."""
    if ahead < 1:
        return text("place_next", language)
    return text("place_second", language) if ahead == 1 else text("place", language, ahead=ahead)


def _bar(status: Status) -> str:
    progress = status.progress
    done = progress.frames_done / progress.num_frames if progress.num_frames else 0.0
    if status.state == "done":
        done = 1.0
    busy = status.state == "running" and not progress.frames_done
    fill = tag("i", style=f"width:{100 * done:.1f}%")
    return tag(
        "div",
        fill,
        class_="bar",
        role="progressbar",
        aria_valuemin=0,
        aria_valuemax=100,
        aria_valuenow=round(100 * done),
        data_busy="yes" if busy else None,
    )


def _figures(status: Status, language: Language) -> str:
    progress = status.progress
    chips = []
    if status.state in ("done", "stopped") and progress.frames_done:
        chips.append(text("video_length", language, s=f"{progress.frames_done / FPS:.1f}"))
    running = status.state in ("running", "waiting")
    if progress.num_parts and running:
        n = min(progress.parts_done + 1, progress.num_parts)
        chips.append(text("part_of", language, n=n, total=progress.num_parts))
        chips.append(text("parts_kept", language, n=progress.parts_done))
        chips.append(text("elapsed", language, time=_clock(progress.elapsed_s)))
    elif progress.num_segments and running:
        n = min(progress.segments_done + 1, progress.num_segments)
        chips.append(text("segment_of", language, n=n, total=progress.num_segments))
    if progress.fps:
        chips.append(text("fps", language, fps=round(progress.fps)))
    if progress.first_frame_s is not None:
        chips.append(text("first_frame", language, s=f"{progress.first_frame_s:.1f}"))
    if progress.eta_s is not None and progress.frames_done < progress.num_frames:
        if progress.num_parts:
            chips.append(text("remaining", language, time=_clock(progress.eta_s)))
        else:
            chips.append(text("eta", language, s=max(1, round(progress.eta_s))))
    return tag("ul", "".join(tag("li", escape(chip)) for chip in chips), class_="figures") if chips else ""


def _clock(seconds: float) -> str:
    """ "0:09", "12:30", "1:05:00" """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
