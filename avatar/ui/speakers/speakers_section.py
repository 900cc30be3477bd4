"""The section of several speakers: its components, and what happens when one of them changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from avatar.ui.error_messages import reports_errors
from avatar.ui.language import browser_table, text
from avatar.ui.presets.preset_panel import PresetPanel
from avatar.ui.speakers.mask_editor import mask_editor
from avatar.ui.speakers.speakers_panel import (
    AROUND,
    AUDIOS,
    FACES,
    ONE,
    PLACES,
    ROWS,
    SHOWN_PLACES,
    WAYS,
    SpeakersPanel,
)
from avatar.ui.theme import script
from avatar.ui.widgets import speech_picker, turns_picker

word: Any = browser_table()


def section() -> dict[str, Any]:
    """The section below the portrait; shown where several faces were found."""
    parts: dict[str, Any] = {}
    with gr.Accordion(word("speakers"), open=False, visible=False, elem_id="speakers") as parts["section"]:
        parts["way"] = gr.Radio(
            [(text(f"speakers_{way}", "en"), way) for way in WAYS],
            value=ONE,
            label=word("speakers_way"),
            elem_id="speakers-way",
        )
        parts["turns"] = turns_picker(label=word("speakers_file"), visible=False, elem_id="speakers-turns")
        for n in ROWS:
            with gr.Row(visible=False, elem_id=f"speaker-{n}") as parts[f"row_{n}"]:
                parts |= _row(n)
        parts["place"] = gr.Radio(
            [(text(f"speakers_place_{place}", "en"), place) for place in PLACES],
            value=AROUND,
            label=word("speakers_place"),
            visible=False,
            elem_id="speakers-place",
        )
        parts["areas"] = areas()
        parts["legend"] = gr.HTML("", apply_default_css=False, visible=False, elem_id="speakers-legend")
        parts["masks"] = mask_editor(
            show_label=False, label=word("speakers_masks"), visible=False, elem_id="speakers-masks"
        )
    return parts


def _row(n: int) -> dict[str, Any]:
    """A speaker's components."""
    return {
        f"face_{n}": gr.Dropdown(
            list(ROWS), value=n, label=str(n), min_width=150, scale=2, elem_id=f"speaker-face-{n}"
        ),
        f"audio_{n}": speech_picker(
            sources=["upload", "microphone"],
            label=word("speech"),
            min_width=200,
            scale=3,
            elem_id=f"speaker-audio-{n}",
        ),
    }


def areas() -> gr.HTML:
    """The boxes in which voices act, for the full model. Its value is None while nobody else speaks."""
    return gr.HTML(
        value=None,
        html_template='<div class="areas" hidden></div>',
        js_on_load=script("areas.js"),
        apply_default_css=False,
        elem_id="speakers-areas",
        words={},
    )


def wire(
    panel: SpeakersPanel, presets: PresetPanel, portrait_seen: Any, queued: Mapping[str, Any]
) -> None:
    """Connect the section's events. portrait_seen: the event after which the portrait's faces are known."""
    s, p = panel.parts.speakers, panel.parts
    rows = [s[name] for name in (*FACES, *AUDIOS)]
    places = [s[name] for name in SHOWN_PLACES]
    shown = [s[name] for name in ("section", "way", "turns", "place")]
    planned = [p.num_speakers, p.presets, p.plan]
    outputs = [*shown, *places, *rows, *panel.rows, *planned]
    inputs = [p.points, s["way"], s["place"], p.portrait, p.preset, p.shape, *p.form.values()]
    portrait_seen.then(reports_errors(panel.faces_changed(presets)), inputs, outputs, **queued)
    s["way"].input(reports_errors(panel.way_changed(presets)), inputs, outputs, **queued)
    s["place"].input(
        reports_errors(panel.place_changed), [p.points, s["way"], s["place"], p.portrait], places, **queued
    )
    for name in AUDIOS:
        s[name].change(reports_errors(panel.heard), [s[name]], [s["section"]], **queued)
