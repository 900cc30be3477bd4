"""The page: what is on it and where. What its events do: page_events.py, and the folders of its panels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from avatar.checkpoints.lora_files import known_loras
from avatar.settings import FORM, SETTINGS, refusal
from avatar.ui.compare import compare_section
from avatar.ui.components import PageComponents
from avatar.ui.jobs import jobs_panel
from avatar.ui.language import browser_table, has_text
from avatar.ui.portrait import point_editor
from avatar.ui.speakers import speakers_section
from avatar.ui.speech import typing_tab
from avatar.ui.state.app_state import AppState
from avatar.ui.state.speech_service import SpeechService
from avatar.ui.state.uploads import Uploads
from avatar.ui.theme import css, script, theme
from avatar.ui.widgets import (
    GuardedBlocks,
    file_picker,
    portrait_picker,
    several_button,
    speech_picker,
    video_button,
)

word: Any = browser_table()  # a function from a key to text that the browser translates


def build_page(app_state: AppState) -> GuardedBlocks:
    """The whole demo, wired; launch it with launch_options()."""
    from avatar.ui import api, page_events

    uploads = app_state.uploads or Uploads(Path(get_upload_folder()))
    app_state.speech_service = app_state.speech_service or SpeechService(uploads, app_state.limits)
    cache = (600, 4 * 3600)
    with GuardedBlocks(uploads, title="Live Avatar", analytics_enabled=False, delete_cache=cache) as demo:
        parts = _layout(app_state)
        app_state.segments.keep_those_of(parts.live)
        app_state.segments.playlists = demo.pending_streams
        page_events.wire(demo, parts, app_state)
        api.wire(app_state)
    demo.queue(api_open=False)
    return demo


def launch_options() -> dict[str, Any]:
    """Arguments for Blocks.launch: theme, styles, scripts and translations."""
    head = (
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<script>{script('page.js')}</script>"
    )
    return {
        "theme": theme(),
        "css": css(),
        "head": head,
        "i18n": word,
        "footer_links": [],
        "run_history": False,
    }


def _layout(app_state: AppState) -> PageComponents:
    parts: dict[str, Any] = {}
    with gr.Row(elem_id="top"):
        gr.HTML(
            word("title"),
            html_template='<div class="brand"><i aria-hidden="true"></i>${value}</div>',
            padding=False,
        )
        parts["machine"] = _panel("machine-chip")
    gr.HTML(
        word("hero"),
        label=word("hero_more"),
        html_template="<h1>${value}</h1><p>${label}</p>",
        apply_default_css=False,
        elem_id="hero",
    )
    if app_state.examples.pairs:
        gr.HTML(
            word("examples"),
            html_template="<h2>${value}</h2>",
            apply_default_css=False,
            elem_id="examples-title",
        )
    parts["examples"] = _panel("examples")
    with gr.Row(elem_id="workspace", equal_height=False):
        with gr.Column(scale=6, min_width=320, elem_id="inputs"):
            parts |= _inputs(app_state)
        with gr.Column(scale=7, min_width=320, elem_id="output"):
            parts |= _output()
    parts["compare"] = compare_section.section()
    parts["gallery"] = _panel("gallery")
    gr.HTML(word("footer"), html_template="<p>${value}</p>", apply_default_css=False, elem_id="footer")
    parts["saved"] = gr.BrowserState({}, storage_key="live-avatar", secret="live-avatar")
    parts["owner"] = gr.State("")
    return PageComponents(**parts)


def _panel(name: str, **options: Any) -> gr.HTML:
    """An HTML panel, rendered by the _html modules in the visitor's language once the page has loaded."""
    return gr.HTML("", js_on_load=script("panel.js"), apply_default_css=False, elem_id=name, **options)


def _inputs(app_state: AppState) -> dict[str, Any]:
    parts: dict[str, Any] = {}
    with gr.Row(elem_id="pickers"):
        with gr.Column(min_width=220, elem_classes="picker"):
            _heading("portrait")
            parts["portrait"] = portrait_picker(
                sources=["upload", "webcam", "clipboard"],
                show_label=False,
                label=word("portrait"),
                height=264,
                elem_id="portrait",
                webcam_options=gr.WebcamOptions(mirror=False),
            )
        with gr.Column(min_width=220, elem_classes="picker"):
            _heading("speech")
            parts |= typing_tab.tabs(app_state.live is not None)
            parts["speech"] = speech_picker(
                sources=["upload"],
                show_label=False,
                label=word("speech"),
                elem_id="speech",
                waveform_options=gr.WaveformOptions(
                    waveform_color="#b8ac9c", waveform_progress_color="#d65a3a", show_recording_waveform=True
                ),
            )
            parts["video"] = video_button(word("speech_video"), size="sm", elem_id="speech-video")
            parts["several"] = several_button(word("several"), size="sm", elem_id="speech-several")
    parts["points"] = point_editor.editor("points")
    parts["speakers"] = speakers_section.section()
    parts["prompt"] = gr.Textbox(
        label=word("prompt"),
        placeholder=word("prompt_hint"),
        lines=2,
        max_lines=6,
        elem_id="prompt",
        visible=False,
    )
    parts["model"] = _panel("model")
    parts["presets"] = _panel("presets")
    parts["preset"] = gr.State(app_state.preset_name)
    parts["shape"] = gr.State(None)  # the portrait's width and height
    parts["num_speakers"] = gr.State(1)
    parts["plan"] = _panel("plan")
    with gr.Accordion(word("advanced"), open=False, elem_id="advanced"):
        parts["form_note"] = _panel("form-note")
        parts["form"] = _form()
        parts["pose"] = file_picker(
            label=word("pose"), height=110, visible=False, elem_id="pose-video", elem_classes="full-model"
        )
    return parts


def _heading(key: str) -> None:
    gr.HTML(
        word(key),
        label=word(f"{key}_info"),
        html_template="<h2>${value}</h2><p>${label}</p>",
        apply_default_css=False,
        elem_classes="heading",
    )


def _form() -> dict[str, Any]:
    """A field for each setting that the table offers on the page."""
    parts: dict[str, Any] = {}
    everywhere = [name for name in FORM if not refusal("preview", name)]
    for names, shown in ((everywhere, ""), ([name for name in FORM if name not in everywhere], "full-model")):
        with gr.Row(elem_classes=shown):
            for name in sorted(names, key=_is_checkbox):  # rows look torn with boxes among the fields
                widget = SETTINGS[name].setting.widget
                assert widget is not None, "FORM holds settings with a widget"
                info = {"info": word(f"{name}_info")} if has_text(f"{name}_info") else {}
                component = getattr(gr, widget.kind)
                options = {**widget.options, **({"choices": ["", *known_loras()]} if name == "lora" else {})}
                parts[name] = component(label=word(name), min_width=160, **info, **options)
    return {name: parts[name] for name in FORM}


def _is_checkbox(name: str) -> bool:
    widget = SETTINGS[name].setting.widget
    return widget is not None and widget.kind == "Checkbox"


def _output() -> dict[str, Any]:
    parts: dict[str, Any] = {}
    with gr.Column(elem_id="stage", elem_classes="stage"):
        parts["badge"] = _panel("stage-badge")
        parts["empty"] = gr.HTML(
            word("stage_empty"),
            label=word("stage_empty_more"),
            html_template='<div class="stage-empty"><i></i><b>${value}</b><span>${label}</span></div>',
            apply_default_css=False,
            elem_id="stage-empty",
        )
        video: dict[str, Any] = {"show_label": False, "interactive": False, "buttons": []}
        parts["live"] = gr.Video(
            label=word("live"), streaming=True, autoplay=True, visible="hidden", elem_id="live", **video
        )
        parts["final"] = gr.Video(
            label=word("player"), autoplay=False, visible=False, elem_id="final", **video
        )
    parts["status"] = _panel("status")
    with gr.Row(elem_id="actions"):
        parts["generate"] = gr.Button(
            word("generate"), variant="primary", size="lg", elem_id="generate", scale=3
        )
        parts["stop"] = gr.Button(
            word("stop"),
            variant="secondary",
            size="lg",
            elem_id="stop",
            interactive=False,
            scale=1,
            min_width=96,
        )
    with gr.Row(elem_id="result", visible=False) as result:
        parts["replay"] = gr.Button(word("replay"), variant="secondary", elem_id="replay", min_width=140)
        parts["download"] = gr.DownloadButton(
            word("download"), variant="primary", size="lg", elem_id="download", min_width=140
        )
    parts["result"] = result
    parts["notices"] = _panel("notices")
    parts["jobs"] = jobs_panel.panel()
    with gr.Column(elem_id="machine"):
        gr.HTML(word("machine"), html_template="<h2>${value}</h2>", apply_default_css=False)
        parts["gauges"] = _panel("gauges")
    return parts
