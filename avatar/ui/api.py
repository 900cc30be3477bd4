"""The endpoints for programs: /generate, /speak, /voices, /presets, /plan, /gauges; no others."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from avatar.errors import BadInput
from avatar.media.framing import parse_picture
from avatar.media.speaker_choice import AskedSpeakers, asked_speakers
from avatar.settings import PICTURE, Picture, Speaking
from avatar.ui import payloads
from avatar.ui.components import STATUS_EVERY_S
from avatar.ui.error_messages import reports_errors
from avatar.ui.language import language_of, text
from avatar.ui.portrait import point_editor
from avatar.ui.routes.request_guard import visitor_of
from avatar.ui.speech.typing_tab import script_of
from avatar.ui.state import submission
from avatar.ui.state.app_state import AppState
from avatar.ui.state.job_queue import KeptVideo, QueuedRun
from avatar.ui.state.speech_service import GrowingText, SpeechService, SpokenText
from avatar.ui.widgets import file_picker, portrait_picker, speech_picker, turns_picker


def wire(app_state: AppState) -> None:
    """Add the endpoints; called inside the Blocks. Their components are not shown on the page."""
    endpoints = Endpoints(app_state)
    with gr.Column(visible=False):
        portrait = portrait_picker(label="portrait")
        speech = speech_picker(label="speech")
        preset = gr.Textbox("auto", label="preset")
        prompt = gr.Textbox("", label="prompt")
        settings = gr.JSON({}, label="settings")
        face_points = gr.JSON({}, label="face_points")  # a default: clients may leave it out
        head_only = gr.Checkbox(False, label="head_only")
        words = gr.Textbox("", label="text")  # instead of a recording
        voice = gr.Textbox(Speaking().voice, label="voice")
        speed = gr.Number(Speaking().speed, label="speed")
        captions = gr.Textbox(Speaking().captions, label="captions")
        shown = [gr.Textbox(getattr(Picture(), name), label=name) for name in PICTURE]
        behind = portrait_picker(label="background_picture")
        speakers = gr.JSON([], label="speakers")
        split = gr.Textbox("", label="split")
        turns = turns_picker(label="turns")
        pose = file_picker(label="pose")
        num_speakers = gr.Number(1, label="num_speakers", precision=0)
        answer, video = gr.JSON(label="answer"), gr.File(label="video")
        sound, said = gr.File(label="speech"), gr.JSON(label="captions")
        button = gr.Button()
    spoken = [words, voice, speed]
    given = [
        portrait,
        speech,
        preset,
        prompt,
        settings,
        face_points,
        head_only,
        *spoken,
        captions,
        *shown,
        behind,
        speakers,
        split,
        turns,
        pose,
    ]
    shared: dict[str, Any] = {"api_visibility": "public", "concurrency_limit": None}
    button.click(reports_errors(endpoints.generate), given, video, api_name="generate", **shared)
    button.click(reports_errors(endpoints.speak), spoken, [sound, said], api_name="speak", **shared)
    button.click(reports_errors(endpoints.voices), None, answer, api_name="voices", queue=False, **shared)
    button.click(reports_errors(endpoints.presets), None, answer, api_name="presets", queue=False, **shared)
    button.click(
        reports_errors(endpoints.plan),
        [preset, settings, num_speakers],
        answer,
        api_name="plan",
        queue=False,
        **shared,
    )
    button.click(reports_errors(endpoints.gauges), None, answer, api_name="gauges", queue=False, **shared)


class Endpoints:
    """Handlers of the endpoints; errors are returned as one or two sentences, as on the page."""

    def __init__(self, app_state: AppState) -> None:
        self.app_state = app_state

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
        words: Any = "",
        voice: Any = None,
        speed: Any = None,
        captions: Any = None,
        face: Any = None,
        framing: Any = None,
        aspect: Any = None,
        extend: Any = None,
        background: Any = None,
        background_picture: str | None = None,
        speakers: Any = None,
        split: Any = None,
        turns: str | None = None,
        pose: str | None = None,
    ) -> Iterator[Any]:
        """Generate a video of the portrait speaking; settings by name, as in a preset's file.

        words: the text to speak, with voice and speed, if there is no speech; captions: off, file or burned.

        face: who speaks if there are several, "2" from the left or a point "0.3,0.4" in the face; framing,
        aspect, extend: which part of the portrait is shown, as on the command line. background: what is
        behind the person; or background_picture, an uploaded file. A transparent video comes as a .webm.

        speakers: where several faces speak, a list of up to four objects, each with a face and its audio, an
        uploaded file; speech is then left out. split: "stereo" where the left and the right channel of the
        speech are two voices; or turns, an uploaded list that says who speaks when. Then speakers may have a
        label, "left", "right" or a name, instead of audio. mask: see the command line.

        pose: a video of poses that the diffusion engine follows, as on the command line.

        A portrait in which no face is found needs face_points, or head_only, which keeps the mouth shut.
        """
        language = language_of(request)
        settings, face_points = payloads.settings(settings), payloads.face_points(face_points)
        head_only = payloads.truth(head_only, "head_only")
        behind = payloads.background(background, background_picture)
        picture = parse_picture(face=face, framing=framing, aspect=aspect, extend=extend, **behind)
        several = asked_speakers(
            payloads.speakers(speakers, self._find), payloads.split(split, turns), recording=bool(speech)
        )
        if several is not None and words:
            raise BadInput("Both speakers and a text were given.", "Each speaker needs a recording.")
        own = several is not None and not several.split
        if not portrait or not (speech or words or own):
            raise BadInput(text("no_portrait" if not portrait else "no_speech", language))
        if speech and words:
            raise BadInput("Both speech and a text were given.", "Give only one of them.")
        visitor = visitor_of(request)
        self.app_state.job_queue.check_not_full(visitor)
        said: SpokenText | GrowingText | None = None
        if not speech and not own:
            script = script_of(words, voice, speed, captions, language)
            grows = partial(submission.may_grow, self.app_state, preset, settings)
            may_grow = grows if not pose else lambda _: False
            for step in self._speech_service.begin(script, visitor, may_grow):
                said = step
                yield gr.skip()
            assert said is not None, "a text that is spoken comes last"
            speech = str(said.path)
        growing = said if isinstance(said, GrowingText) else None
        asked = (preset, settings, prompt, face_points, head_only, picture, several, pose)
        try:
            run = yield from self._submitted(portrait, speech, said, visitor, *asked)
        except BaseException:
            if growing is not None:
                growing.close()
            raise
        try:
            for event in run.follow(STATUS_EVERY_S):
                if isinstance(event, KeptVideo):
                    if event.error is not None:
                        raise event.error
                    yield str(self.app_state.handed_out(event.entry))
                else:
                    yield gr.skip()
        finally:
            self.app_state.job_queue.stop(run)
            run.let_go()

    def _submitted(
        self,
        portrait: str,
        speech: str | None,
        said: SpokenText | GrowingText | None,
        visitor: str,
        preset: str,
        settings: dict[str, Any],
        prompt: str,
        face_points: dict[str, tuple[float, float]] | None,
        head_only: bool,
        picture: Picture,
        several: AskedSpeakers | None,
        pose: str | None,
    ) -> Generator[Any, None, QueuedRun]:
        """Read the files, and queue the run. Raises: AvatarError."""
        growing = said if isinstance(said, GrowingText) else None
        reader = self.app_state.reader(visitor)
        heard: list[Path | None] = [None if growing else Path(speech)] if speech else []
        for path in (*heard, *(several.recordings if several else ())):
            for _ in reader.ahead(Path(portrait), path, STATUS_EVERY_S):
                yield gr.skip()  # so that Gradio can end this once the client has disconnected
        asked = face_points or head_only or picture.face or several
        if not asked and self.app_state.machine.resolved(preset).engine == "preview":
            limits = self.app_state.limits
            found = point_editor.look_at(Path(portrait), self.app_state.examples, limits, reader=reader)
            face_points = dict(found.points) if found.verdict == "placed" and found.points else None
        return submission.submit(
            self.app_state,
            Path(portrait),
            Path(speech) if speech else None,
            preset,
            settings,
            prompt=prompt,
            face_points=face_points,
            head_only=head_only,
            visitor=visitor,
            speech_name=said.script.title if said else None,
            captions=said.shown if said else (),
            growing=growing,
            spoken=said.script.digest if said else "",
            burn_captions=said is not None and said.script.speaking.captions == "burned",
            picture=picture,
            speakers=several,
            pose=Path(pose) if pose else None,
        )

    def speak(self, request: gr.Request, words: Any, voice: Any, speed: Any) -> Iterator[Any]:
        """Speak a text: its sound file, and when each sentence is said, in seconds."""
        script = script_of(words, voice, speed, None, language_of(request))
        for said in self._speech_service.speak(script, visitor_of(request)):
            if said is None:
                yield gr.skip(), gr.skip()
            else:
                yield str(said.path), [asdict(one) for one in said.captions]

    def voices(self, request: gr.Request) -> list[dict[str, Any]]:
        """Every voice: who it is, which languages it reads, what its first use downloads, what is missing."""
        return [asdict(voice) for voice in self._speech_service.every_voice()]

    def _find(self, path: object) -> Path:
        assert self.app_state.uploads is not None, "the server has a folder for them"
        return self.app_state.uploads.find(path)

    @property
    def _speech_service(self) -> SpeechService:
        assert self.app_state.speech_service is not None, "the page has made them"
        return self.app_state.speech_service

    def presets(self, request: gr.Request) -> list[dict[str, Any]]:
        """Every preset: its requirements and output, whether it runs on this machine, what is missing."""
        found = self.app_state.machine.verdicts()
        return [
            {"name": preset.name, **preset.as_dict(), "availability": found[preset.name].as_dict()}
            for preset in self.app_state.presets
        ]

    def plan(
        self, request: gr.Request, preset: str, settings: Any, num_speakers: Any = 1
    ) -> dict[str, Any]:
        """What a preset with these settings would hold in memory here, and whether it can run.

        num_speakers: faces with a voice of their own, from 1 to 4.
        """
        count, machine = payloads.num_speakers(num_speakers), self.app_state.machine
        chosen = machine.with_settings(preset, payloads.settings(settings), count)
        planned, refusal = machine.plan(chosen, count)
        return {"preset": chosen.name, "refusal": refusal, "plan": planned.as_dict() if planned else None}

    def gauges(self, request: gr.Request) -> dict[str, Any]:
        """Current readings of the GPUs and the host."""
        return self.app_state.gauges.read().as_dict()
