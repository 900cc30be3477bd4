"""One press of Generate: what the page's inputs ask for, checked and queued as a run."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from avatar.errors import BadInput
from avatar.media.speaker_choice import AskedSpeakers
from avatar.preset import Preset
from avatar.speech.narration import Narrator
from avatar.ui.components import STATUS_EVERY_S, PageComponents, Updates
from avatar.ui.generate.run_view import RunView
from avatar.ui.language import Language, language_of, text
from avatar.ui.payloads import mapping
from avatar.ui.portrait import framing_panel, point_editor
from avatar.ui.presets.settings_form import leading_pose
from avatar.ui.routes.request_guard import visitor_of
from avatar.ui.speakers.speakers_panel import SpeakersPanel
from avatar.ui.speech.typing_tab import TYPE, TypingPanel
from avatar.ui.state import submission
from avatar.ui.state.app_state import AppState
from avatar.ui.state.job_queue import QueuedRun
from avatar.ui.state.page_runs import PageRuns
from avatar.ui.state.speech_service import GrowingText, SpokenText


class Generate:
    """The handler of Generate."""

    def __init__(self, parts: PageComponents, app_state: AppState, visits: PageRuns) -> None:
        self.parts = parts
        self.typing = TypingPanel(parts, app_state)
        self.speakers = SpeakersPanel(parts, app_state)
        self.app_state = app_state
        self.visits = visits
        self.run_view = RunView(parts, app_state, visits)

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
        portrait, speech, _, _, _, _, source, *_ = values
        language = language_of(request)
        if not portrait:
            raise BadInput(text("no_portrait", language))
        self.app_state.job_queue.check_not_full(visitor_of(request))
        said: SpokenText | GrowingText | None = None
        _, own = self.speaking(values, language)
        if source == TYPE and not own:
            said = yield from self._begun(request, *values)
            speech = str(said.path)
        if not speech and not own:
            raise BadInput(text("no_speech", language))
        kept: list[SpokenText] = [said] if isinstance(said, SpokenText) else []
        try:
            yield from self._shown(request, None if own else speech, values, said, kept)
        except Exception:
            yield from map(self.typing.heard, kept)
            raise
        yield from map(self.typing.heard, kept)  # only now: its picture would take the video's time

    def _shown(
        self,
        request: gr.Request,
        speech: str | None,
        values: Sequence[Any],
        said: SpokenText | GrowingText | None,
        kept: list[SpokenText],
    ) -> Iterator[Updates]:
        """Queue the run, and show it until it is over. kept: gets what a growing text becomes."""
        growing = said if isinstance(said, GrowingText) else None
        run = None
        try:
            if growing is not None:
                self.typing.speech_service.keep_when_over(growing, visitor_of(request), kept.append)
            run = yield from self.submit(request, speech, *values, said=said)
        finally:
            if run is None and growing is not None:
                growing.close()
        if run is not None:
            self.visits.begin(request.session_hash or "", run)
            yield from self.run_view.show(run, request, values[5])

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
            if said is None:
                yield {self.parts.status: gr.skip()}
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
        several = self.several(values, speech is not None, language)
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
            **of_portrait(asked, several is not None),
            speakers=drawn_for(several, self.app_state.machine.resolved(preset)),
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

    def speaking(self, values: Sequence[Any], language: Language) -> tuple[AskedSpeakers | None, bool]:
        """As several, and whether each face has its own recording. Raises: BadInput for a shared text."""
        several = self.several(values, True, language)
        own = several is not None and not several.split
        if several is not None and not own and values[6] == TYPE:
            raise BadInput(text("speakers_no_text", language))
        return several, own

    def several(self, values: Sequence[Any], recording: bool, language: Language) -> AskedSpeakers | None:
        """Who speaks where several faces do. values: of `inputs`.

        recording: see SpeakersPanel.asked. Raises: BadInput.
        """
        given = values[len(self.inputs) - len(self.speakers.inputs) :]
        return self.speakers.asked(values[4], given, recording, language)


def of_portrait(asked: Mapping[str, Any], several: bool) -> dict[str, Any]:
    """What the portrait's panel says of a run. several: the section of speakers says which faces speak."""
    picture = framing_panel.picture_settings(asked)
    if several:
        return {"picture": replace(picture, face="")}
    return {
        "face_points": framing_panel.answer(asked),
        "head_only": point_editor.head_only(asked),
        "picture": picture,
    }


def drawn_for(several: AskedSpeakers | None, preset: Preset) -> AskedSpeakers | None:
    """The speakers; without the areas that were drawn for them where the engine has no use of areas."""
    if several is None or preset.engine != "preview":
        return several
    return replace(several, speakers=tuple(replace(one, mask=None, painted=None) for one in several.speakers))


def _answers(asked: Mapping[str, Any], portrait: str) -> bool:
    """Whether the page has checked this same portrait."""
    return asked.get("for") == Path(portrait).name and asked.get("engine") == "preview"
