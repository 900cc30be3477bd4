"""The endpoints for programs: /generate, /presets, /plan, /gauges. All others are private."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from avatar.errors import BadInput
from avatar.ui import payloads, point_editor
from avatar.ui.app_state import AppState
from avatar.ui.error_messages import reports_errors
from avatar.ui.guard import visitor_of
from avatar.ui.i18n import language_of, text
from avatar.ui.job_queue import KeptVideo
from avatar.ui.run import STATUS_EVERY_S
from avatar.ui.widgets import portrait_picker, speech_picker


def wire(studio: AppState) -> None:
    """Add the endpoints; called inside the Blocks. Their components are never on the page."""
    endpoints = Endpoints(studio)
    with gr.Column(visible=False):
        portrait = portrait_picker(label="portrait")
        speech = speech_picker(label="speech")
        preset = gr.Textbox("auto", label="preset")
        prompt = gr.Textbox("", label="prompt")
        settings = gr.JSON({}, label="settings")
        face_points = gr.JSON({}, label="face_points")  # a default: clients may leave it out
        head_only = gr.Checkbox(False, label="head_only")
        answer, video = gr.JSON(label="answer"), gr.File(label="video")
        button = gr.Button()
    given = [portrait, speech, preset, prompt, settings, face_points, head_only]
    shared: dict[str, Any] = {"api_visibility": "public", "concurrency_limit": None}
    button.click(reports_errors(endpoints.generate), given, video, api_name="generate", **shared)
    button.click(reports_errors(endpoints.presets), None, answer, api_name="presets", queue=False, **shared)
    button.click(
        reports_errors(endpoints.plan), [preset, settings], answer, api_name="plan", queue=False, **shared
    )
    button.click(reports_errors(endpoints.gauges), None, answer, api_name="gauges", queue=False, **shared)


class Endpoints:
    """The handlers; errors come back as one sentence or two, as on the page."""

    def __init__(self, studio: AppState) -> None:
        self.studio = studio

    def generate(
        self,
        request: gr.Request,
        portrait: str | None,
        speech: str | None,
        preset: str,
        prompt: str,
        settings: Any,
        face_points: Any,
        head_only: Any,
    ) -> Iterator[Any]:
        """A finished video of the portrait speaking; settings as in a preset's file, by name.

        A portrait in which no face is found needs face_points, or head_only: then the mouth stays shut.
        """
        language = language_of(request)
        settings, face_points = payloads.settings(settings), payloads.face_points(face_points)
        head_only = payloads.truth(head_only, "head_only")
        if not portrait or not speech:
            raise BadInput(text("no_portrait" if not portrait else "no_speech", language))
        visitor = visitor_of(request)
        self.studio.desk.check_room(visitor)
        reader = self.studio.reader(visitor)
        for _ in reader.ahead(Path(portrait), Path(speech), STATUS_EVERY_S):
            yield gr.skip()  # so that a client that has gone away gives its place up
        if not face_points and not head_only and self.studio.resolved(preset).engine == "preview":
            limits = self.studio.limits
            found = point_editor.look_at(Path(portrait), self.studio.examples, limits, reader=reader)
            face_points = dict(found.points) if found.verdict == "placed" and found.points else None
        run = self.studio.submit(
            Path(portrait),
            Path(speech),
            preset,
            settings,
            prompt=prompt,
            face_points=face_points,
            head_only=head_only,
            visitor=visitor,
        )
        try:
            for said in run.follow(STATUS_EVERY_S):
                if isinstance(said, KeptVideo):
                    if said.error is not None:
                        raise said.error
                    yield str(self.studio.handed_out(said.entry))
                else:
                    yield gr.skip()
        finally:
            self.studio.desk.stop(run)
            run.let_go()

    def presets(self, request: gr.Request) -> list[dict[str, Any]]:
        """Every preset: what it needs and gives, whether this machine has it, what is missing."""
        found = self.studio.verdicts()
        return [
            {"name": preset.name, **preset.as_dict(), "availability": found[preset.name].as_dict()}
            for preset in self.studio.presets
        ]

    def plan(self, request: gr.Request, preset: str, settings: Any) -> dict[str, Any]:
        """What a preset, with settings laid over it, would hold in memory here, and whether it can run."""
        chosen = self.studio.with_settings(preset, payloads.settings(settings))
        planned, refusal = self.studio.plan(chosen)
        return {"preset": chosen.name, "refusal": refusal, "plan": planned.as_dict() if planned else None}

    def gauges(self, request: gr.Request) -> dict[str, Any]:
        """GPUs and host as they are now."""
        return self.studio.gauges.read().as_dict()
