"""A live session's portrait: which face speaks and what is shown, by the server's flags or by the page."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from PIL import Image

from avatar.live.portrait_intake import live_preset
from avatar.media.limits import InputLimits
from avatar.media.readers import Reader
from avatar.request import LiveRequest
from avatar.settings import Picture
from avatar.ui.live.live_html import render_live
from avatar.ui.live.live_tab import LivePanel
from avatar.ui.portrait import point_editor
from avatar.ui.state.examples import Examples

sys.path.insert(0, str(Path(__file__).parents[1] / "preview"))
from pictures import bystander

LIMITS = InputLimits()


@pytest.fixture
def two(tmp_path: Path) -> Path:
    Image.fromarray(bystander()).save(tmp_path / "us.png")
    return tmp_path / "us.png"


def begun(
    folder: Path, options: Any, portrait: Path | None, asked: Any, motion: str | None = None
) -> LiveRequest:
    """The request of a session that begins with this portrait."""
    taken: list[LiveRequest] = []

    def ask(request: LiveRequest, *_: object) -> SimpleNamespace:
        taken.append(request)
        return SimpleNamespace(token="t")

    session_queue = SimpleNamespace(check_not_full=lambda visitor: None, ask=ask)
    app_state = SimpleNamespace(
        live=SimpleNamespace(options=options, session_queue=session_queue),
        reader=lambda visitor: Reader(),
        examples=Examples(),
        limits=LIMITS,
        scratch=folder,
    )
    panel = LivePanel(SimpleNamespace(live_ticket="ticket", points="points"), app_state)
    event = SimpleNamespace(_data={"action": "begin", "id": 1, "motion": motion})
    request = gr.Request()
    request.kwargs = {"headers": {}}
    request.client = SimpleNamespace(host="127.0.0.1")
    panel.begin(request, event, str(portrait) if portrait else None, asked, "")
    [one] = taken
    return one


def options(portrait: Path | None, **picture: str) -> SimpleNamespace:
    return SimpleNamespace(preset=live_preset("live-preview"), portrait=portrait, picture=Picture(**picture))


def test_the_servers_flags_choose_of_its_own_portrait(two: Path, tmp_path: Path) -> None:
    request = begun(tmp_path, options(two, face="2", framing="shoulders", aspect="1:1"), None, None)
    left, _, right, _ = request.face
    assert (left + right) / 2 == pytest.approx(0.5, abs=0.02)
    with Image.open(request.portrait) as shown:
        assert shown.width == shown.height == 256
    assert {one.code for one in request.notices} == {"face_chosen", "small_crop"}


def test_the_page_chooses_of_a_visitors_portrait(two: Path, tmp_path: Path) -> None:
    look = point_editor.look_at(two, Examples(), LIMITS)
    value = point_editor.question(look, two, "en")["value"]
    asked = {**value, "face": 1, "verdict": "face", "aspect": "16:9"}
    request = begun(tmp_path, options(None, face="1"), two, asked)
    with Image.open(request.portrait) as shown:
        assert shown.width / shown.height == pytest.approx(16 / 9, rel=0.01)
        box = request.face
    assert (box[0] + box[2]) / 2 == pytest.approx(0.5 + (443 / 512 - 0.5) * 9 / 16, abs=0.02)


def test_a_session_of_the_page_moves_as_the_visitor_chooses(two: Path, tmp_path: Path) -> None:
    for motion, expected in (("lively", "lively"), (None, "normal"), ("", "normal")):
        request = begun(tmp_path, options(two, face="2"), None, None, motion)
        assert request.preset.generation.motion == expected


def test_the_live_tab_offers_motions_and_begins_with_the_servers() -> None:
    for language, word in (("en", "lively"), ("zh", "生动")):
        shown = render_live(language, (), False, "", "", "lively")
        assert f'<option value="lively" selected>{word}</option>' in shown
        assert shown.count(" selected") == 1
