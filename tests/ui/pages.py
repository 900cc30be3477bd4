"""A page without Gradio, on a real job queue and a scripted engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
from engines import ScriptedEngine

from avatar.preset import load_presets
from avatar.runtime.gallery import Gallery
from avatar.settings import FORM
from avatar.ui.components import PageComponents
from avatar.ui.generate.generate import Generate
from avatar.ui.speakers.speakers_panel import NAMES as SPEAKERS
from avatar.ui.state.app_state import AppState
from avatar.ui.state.job_queue import JobQueue
from avatar.ui.state.machine_presets import flat
from avatar.ui.state.page_runs import PageRuns
from avatar.ui.state.uploads import Uploads

ASSETS = Path(__file__).resolve().parents[2] / "assets"
PORTRAIT = ASSETS / "portraits" / "astronaut.jpg"
SPEECH = ASSETS / "speech" / "hello-en.flac"


def request_of(visit: str) -> gr.Request:
    """A request from the page of that session."""
    request = gr.Request()
    request.kwargs = {"headers": {}}
    request.session_hash = visit
    return request


class Page:
    """A page without Gradio: each component is its own name."""

    def __init__(
        self, folder: Path, engine: ScriptedEngine, max_waiting: int = 8, keep_running_s: float | None = None
    ) -> None:
        self.engine = engine
        gallery = Gallery(folder / "outputs")
        scratch = folder / "scratch"
        scratch.mkdir()
        self.job_queue = JobQueue(lambda preset: engine, gallery, max_waiting)
        uploads = Uploads(folder / "uploads")
        self.app_state = AppState(
            self.job_queue,
            gallery,
            load_presets(),
            "auto",
            scratch,
            uploads=uploads,
            keep_running_s=keep_running_s,
        )
        names = dict.fromkeys(PageComponents.__dataclass_fields__, "")
        named = {"form": {name: name for name in FORM}, "speakers": {name: name for name in SPEAKERS}}
        parts = SimpleNamespace(**{name: name for name in names} | named)
        self.visits = PageRuns(self.app_state)
        self.generate = Generate(parts, self.app_state, self.visits)  # type: ignore[arg-type]

    def press(
        self,
        portrait: Path | None = PORTRAIT,
        asked: Any = None,
        visit: str = "v",
        typed: tuple[Any, ...] = ("upload", "", "heart", 1.0, "file", None),
        speech: Path | None = SPEECH,
        speakers: tuple[Any, ...] = (),
        **form: Any,
    ) -> Iterator:
        request = request_of(visit)
        values = {**flat(self.app_state.machine.resolved("auto")), **form}
        files = [None if path is None else str(path) for path in (portrait, speech)]
        given = [*files, "", "auto", asked, "me", *typed, *(values[name] for name in FORM)]
        return self.generate.press(request, *given, None, *speakers)  # without a pose video


def updates_of(updates: list[dict], name: str) -> list[Any]:
    return [update[name] for update in updates if name in update]


def gather(run: Iterator[dict], updates: list[dict]) -> None:
    """Collect a run's updates, even if it ends with an error."""
    for update in run:
        updates.append(update)
