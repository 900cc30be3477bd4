"""Properties of the page's own HTML components."""

from __future__ import annotations

from avatar.ui.jobs import jobs_panel
from avatar.ui.portrait import point_editor
from avatar.ui.speakers import speakers_section


def test_no_property_is_taken_for_an_event() -> None:
    """Gradio takes quoted words of a script for events, and sends those instead of properties."""
    editor = point_editor.editor("points")
    for component in (editor, jobs_panel.panel(), speakers_section.areas()):
        assert [name for name in component.props if hasattr(component, name)] == []
    assert {"image", "words", "placed"} <= editor.props.keys()
