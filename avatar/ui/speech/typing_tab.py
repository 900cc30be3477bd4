"""The tab Type: a text instead of a recording, its voice, and what it sounds like."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import gradio as gr

from avatar.errors import BadInput
from avatar.settings import SPEAKING, CaptionPlace, Speaking
from avatar.speech.catalogue import speaking
from avatar.speech.narration import Narrator, Script
from avatar.speech.voices import Voice
from avatar.ui.components import PageComponents, Updates
from avatar.ui.language import Language, browser_table, language_of, program_words, text
from avatar.ui.live import live_tab
from avatar.ui.payloads import text_of
from avatar.ui.routes.request_guard import visitor_of
from avatar.ui.state.app_state import AppState
from avatar.ui.state.speech_service import GrowingText, SpeechService, SpokenText

word: Any = browser_table()

UPLOAD, RECORD, TYPE = "upload", "record", "type"
SOURCES = {UPLOAD: ["upload"], RECORD: ["microphone"], TYPE: ["upload"]}
MOST_LETTERS = 200_000  # of a text box; the limit on spoken seconds is checked later



def tabs(live: bool = False) -> dict[str, Any]:
    """The tabs for giving speech; Type and Live have panels, the others share the picker below.

    live: whether there are live sessions.
    """
    parts: dict[str, Any] = {"source": gr.State(UPLOAD), "spoken": gr.State(None), "tab": {}}
    default = Speaking()
    with gr.Tabs(selected=UPLOAD, elem_id="speech-source") as parts["tabs"]:
        for name in (UPLOAD, RECORD):
            with gr.Tab(word(f"source_{name}"), id=name) as parts["tab"][name]:
                pass
        with gr.Tab(word("source_type"), id=TYPE) as parts["tab"][TYPE], gr.Column(elem_id="typing"):
            parts["text"] = gr.Textbox(
                label=word("text"),
                placeholder=word("text_hint"),
                lines=4,
                max_lines=10,
                max_length=MOST_LETTERS,
                elem_id="text",
            )
            parts["voice"] = gr.Dropdown(
                [default.voice], value=default.voice, label=word("voice"), elem_id="voice"
            )
            parts["captions"] = gr.Dropdown(
                list(get_args(CaptionPlace)),
                value=default.captions,
                label=word("captions"),
                elem_id="captions",
            )
            widget = SPEAKING["speed"].setting.widget
            assert widget is not None, "the table offers it on the page"
            parts["speed"] = gr.Slider(
                value=default.speed,
                label=word("speed_of_voice"),
                buttons=[],
                elem_id="voice-speed",
                **widget.options,
            )
            with gr.Row():
                parts["sample"] = gr.Button(
                    word("voice_sample"), size="sm", min_width=110, elem_id="voice-sample"
                )
                parts["speak"] = gr.Button(word("speak"), size="sm", min_width=110, elem_id="speak")
            parts["sample_sound"] = gr.Audio(
                autoplay=True,
                visible=False,
                interactive=False,
                show_label=False,
                buttons=[],
                elem_id="sample-sound",
            )
        parts |= live_tab.tab(live)
    return parts


def choices(voices: list[Voice], language: Language) -> list[tuple[str, str]]:
    """A dropdown's choices of voices: the label shown, and the name."""
    return [(_label(voice, language), voice.name) for voice in voices]


def _label(voice: Voice, language: Language) -> str:
    name = voice.name.rpartition("/")[2].partition("_")[2] or voice.name.rpartition("/")[2]
    who = program_words("voices", language).get(voice.about, voice.about)
    if not voice.language:
        who = text("voice_any", language)
    if voice.fetch_mb:
        who = text("voice_download", language, about=who, mb=voice.fetch_mb)
    return f"{name.capitalize()} · {who}"


def script_of(value: Any, voice: Any, speed: Any, captions: Any, language: Language) -> Script:
    """The script that a page or client asks to have spoken. Raises: BadInput."""
    if not text_of(value).strip():
        raise BadInput(text("no_text", language))
    pace = float(speed) if isinstance(speed, int) and not isinstance(speed, bool) else speed
    return Script(text_of(value), speaking(voice=voice or None, speed=pace, captions=captions or None))


class TypingPanel:
    """Handlers of the tab; each takes the request first."""

    def __init__(self, parts: PageComponents, app_state: AppState) -> None:
        self.parts, self.app_state = parts, app_state

    @property
    def speech_service(self) -> SpeechService:
        assert self.app_state.speech_service is not None, "the page has made them"
        return self.app_state.speech_service

    @property
    def inputs(self) -> list[Any]:
        p = self.parts
        return [p.source, p.text, p.voice, p.speed, p.captions, p.spoken]

    def opened(self, language: Language) -> Updates:
        """The choices in the page's language."""
        p = self.parts
        places = [(text(f"captions_{place}", language), place) for place in get_args(CaptionPlace)]
        return {
            p.voice: gr.update(choices=choices(self.speech_service.voices(), language)),
            p.captions: gr.update(choices=places),
        }

    def chosen(self, source: str) -> Any:
        """The handler of one tab."""

        def handler(request: gr.Request, speech: str | None) -> Updates:
            p = self.parts
            return {
                p.source: source,
                p.live_open: False,
                p.speech: gr.update(sources=SOURCES[source], visible=source != TYPE or bool(speech)),
                p.video: gr.update(visible=source == UPLOAD),
                p.several: gr.update(visible=source != TYPE),
            }

        return handler

    def spoken_text(self, request: gr.Request, *given: Any) -> Iterator[SpokenText | None]:
        """Speak the tab's text: None now and then, then the result. given: `inputs` without the first."""
        value, voice, speed, captions, before = given
        script = script_of(value, voice, speed, captions, language_of(request))
        if isinstance(before, SpokenText) and before.is_of(script):
            yield SpokenText(script, before.path, before.captions)
            return
        yield from self.speech_service.speak(script, visitor_of(request))

    def begun(
        self, request: gr.Request, may_grow: Callable[[Narrator], bool], *given: Any
    ) -> Iterator[SpokenText | GrowingText | None]:
        """The same for a video, which may begin before a slow voice has ended; see SpeechService.begin."""
        value, voice, speed, captions, before = given
        script = script_of(value, voice, speed, captions, language_of(request))
        if isinstance(before, SpokenText) and before.is_of(script):
            yield SpokenText(script, before.path, before.captions)
            return
        yield from self.speech_service.begin(script, visitor_of(request), may_grow)

    def heard(self, spoken: SpokenText, play: bool = False) -> Updates:
        """The page with a text that has been spoken. play: at once."""
        return {
            self.parts.speech: gr.update(value=str(spoken.path), visible=True, autoplay=play),
            self.parts.spoken: spoken,
        }

    def hear(self, request: gr.Request, *given: Any) -> Iterator[Updates]:
        """Speak the text, to be heard in the picker. given: as spoken_text. Raises: AvatarError."""
        for spoken in self.spoken_text(request, *given):
            yield {self.parts.speech: gr.skip()} if spoken is None else self.heard(spoken, play=True)

    def sample(self, request: gr.Request, voice: Any, speed: Any) -> Iterator[Any]:
        """Play a voice's sample. Raises: AvatarError."""
        wanted = speaking(voice=voice or None, speed=float(speed) if isinstance(speed, int) else speed)
        for spoken in self.speech_service.sample(wanted.voice, wanted.speed, visitor_of(request)):
            yield gr.skip() if spoken is None else gr.update(value=str(Path(spoken.path)), visible=True)
