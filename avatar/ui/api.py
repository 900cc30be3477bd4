"""The endpoints for programs: /generate, /presets, /plan, /gauges. All others are private."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from avatar.errors import BadInput
from avatar.ui import points
from avatar.ui.desk import Kept
from avatar.ui.faults import told
from avatar.ui.i18n import language_of, text
from avatar.ui.inputs import portrait_picker, speech_picker
from avatar.ui.run import STATUS_EVERY_S
from avatar.ui.studio import Studio


def wire(studio: Studio) -> None:
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
    button.click(told(endpoints.generate), given, video, api_name="generate", **shared)
    button.click(told(endpoints.presets), None, answer, api_name="presets", queue=False, **shared)
    button.click(told(endpoints.plan), [preset, settings], answer, api_name="plan", queue=False, **shared)
    button.click(told(endpoints.gauges), None, answer, api_name="gauges", queue=False, **shared)


class Endpoints:
    """The handlers; errors come back as one sentence or two, as on the page."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    def generate(
        self,
        request: gr.Request,
        portrait: str | None,
        speech: str | None,
        preset: str,
        prompt: str,
        settings: dict[str, Any] | None,
        face_points: dict[str, tuple[float, float]] | None,
        head_only: bool,
    ) -> Iterator[Any]:
        """A finished video of the portrait speaking; settings as in a preset's file, by name.

        A portrait in which no face is found needs face_points, or head_only: then the mouth stays shut.
        """
        language = language_of(request)
        if not portrait or not speech:
            raise BadInput(text("no_portrait" if not portrait else "no_speech", language))
        if not face_points and not head_only and self.studio.resolved(preset).engine == "preview":
            found = points.look_at(Path(portrait), self.studio.examples, self.studio.limits)
            face_points = dict(found.points) if found.verdict == "placed" and found.points else None
        run = self.studio.submit(
            Path(portrait),
            Path(speech),
            preset,
            settings or {},
            prompt=prompt,
            face_points=face_points or None,
            head_only=head_only,
        )
        try:
            for said in run.follow(STATUS_EVERY_S):
                if isinstance(said, Kept):
                    if said.error is not None:
                        raise said.error
                    yield str(said.entry.video)
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

    def plan(self, request: gr.Request, preset: str, settings: dict[str, Any] | None) -> dict[str, Any]:
        """What a preset, with settings laid over it, would hold in memory here, and whether it can run."""
        chosen = self.studio.with_settings(preset, settings or {})
        planned, refusal = self.studio.plan(chosen)
        return {"preset": chosen.name, "refusal": refusal, "plan": planned.as_dict() if planned else None}

    def gauges(self, request: gr.Request) -> dict[str, Any]:
        """GPUs and host as they are now."""
        return self.studio.gauges.read().as_dict()
