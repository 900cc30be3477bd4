"""The section Compare: its components, and how they are connected to its handlers."""

from __future__ import annotations

from typing import Any

import gradio as gr

from avatar.compare.page import IN_STEP
from avatar.ui.compare.compare_panel import ComparePanel
from avatar.ui.error_messages import reports_errors
from avatar.ui.language import browser_table
from avatar.ui.payloads import text_of
from avatar.ui.theme import script

word: Any = browser_table()


def section() -> dict[str, Any]:
    """Create the components, by name, at the place of the page where this is called."""
    parts: dict[str, Any] = {}
    html: dict[str, Any] = {"apply_default_css": False}
    with gr.Accordion(word("compare"), open=False, elem_id="compare"):
        gr.HTML(word("compare_info"), html_template='<p class="muted">${value}</p>', **html)
        with gr.Tabs(elem_id="compare-ways"):
            with gr.Tab(word("compare_finished"), id="finished"):
                with gr.Row():
                    parts["a"] = _dropdown("compare_a", "compare-a")
                    parts["b"] = _dropdown("compare_b", "compare-b")
                parts["go"] = gr.Button(word("compare_go"), variant="primary", elem_id="compare-go")
            with gr.Tab(word("compare_make"), id="make"):
                gr.HTML(word("compare_make_info"), html_template='<p class="muted">${value}</p>', **html)
                with gr.Row():
                    parts["differs"] = _dropdown("compare_differs", "compare-differs")
                    typed = {"allow_custom_value": True}
                    parts["value_a"] = _dropdown("compare_value_a", "compare-value-a", **typed)
                    parts["value_b"] = _dropdown("compare_value_b", "compare-value-b", **typed)
                parts["make"] = gr.Button(word("compare_go_make"), variant="primary", elem_id="compare-make")
        parts["stop"] = gr.Button(word("compare_stop"), visible=False, elem_id="compare-stop")
        parts["note"] = gr.HTML("", elem_id="compare-note", **html)
        with gr.Row(elem_id="compare-result"):
            played = IN_STEP.read_text(encoding="utf-8") + script("compare.js")
            parts["players"] = gr.HTML("", js_on_load=played, elem_id="compare-players", **html)
            parts["table"] = gr.HTML("", elem_id="compare-table", **html)
    return parts


def wire(panel: ComparePanel, queued: dict[str, Any]) -> None:
    """Connect the section's events."""
    p, c = panel.parts, panel.parts.compare
    form = list(p.form.values())
    for changed in (p.gallery, p.preset):
        changed.change(reports_errors(panel.offered), panel.offer_inputs, panel.offer_outputs, **queued)
    c["differs"].input(
        reports_errors(panel.differs), [c["differs"], p.preset, *form], [c["value_a"], c["value_b"]], **queued
    )
    long: dict[str, Any] = {**queued, "outputs": panel.outputs}
    c["go"].click(reports_errors(panel.compare), [c["a"], c["b"], p.owner], **long)
    c["make"].click(reports_errors(panel.make), panel.make_inputs, **long)
    c["stop"].click(reports_errors(panel.stop), None, [c["stop"]], **{**queued, "queue": False})


def _dropdown(key: str, elem_id: str, **options: Any) -> gr.Dropdown:
    """A dropdown whose choices are filled in later; the handlers, not Gradio, check what was chosen."""
    dropdown = gr.Dropdown([], value=None, label=word(key), elem_id=elem_id, min_width=200, **options)
    dropdown.preprocess = text_of  # type: ignore[method-assign, assignment]
    return dropdown
