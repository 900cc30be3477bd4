"""The components of the page that its callbacks read and change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

STATUS_EVERY_S = 0.4  # the least time between two redraws of the status; also how soon a cancel is noticed

Updates = dict[Any, Any]
"""What a handler changes on the page: by component, its new value or properties."""


@dataclass
class PageComponents:
    """The components that handlers read and write."""

    machine: gr.HTML
    examples: gr.HTML
    portrait: gr.Image
    points: gr.HTML
    source: gr.State
    tabs: gr.Tabs
    tab: dict[str, Any]
    text: gr.Textbox
    voice: gr.Dropdown
    speed: gr.Slider
    captions: gr.Dropdown
    sample: gr.Button
    speak: gr.Button
    sample_sound: gr.Audio
    spoken: gr.State
    live_tab: gr.Tab
    live_open: gr.State
    live_panel: gr.HTML
    live_ticket: gr.HTML
    speech: gr.Audio
    video: gr.UploadButton
    prompt: gr.Textbox
    presets: gr.HTML
    preset: gr.State
    form: dict[str, Any]
    form_note: gr.HTML
    pose: gr.File
    plan: gr.HTML
    model: gr.HTML
    shape: gr.State
    num_speakers: gr.State
    badge: gr.HTML
    empty: gr.HTML
    live: gr.Video
    final: gr.Video
    status: gr.HTML
    generate: gr.Button
    stop: gr.Button
    result: gr.Row
    replay: gr.Button
    download: gr.DownloadButton
    notices: gr.HTML
    jobs: gr.HTML
    several: gr.UploadButton
    gauges: gr.HTML
    gallery: gr.HTML
    compare: dict[str, Any]
    speakers: dict[str, Any]
    saved: gr.BrowserState
    owner: gr.State
