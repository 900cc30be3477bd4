"""Backgrounds on the page, in the API and live: what is taken, refused, and downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from engines import ScriptedEngine
from pages import PORTRAIT, Page, updates_of
from PIL import Image

from avatar.errors import BadInput
from avatar.live.portrait_intake import live_preset, open_live_request
from avatar.long import unfinished
from avatar.media.framing import parse_picture
from avatar.media.limits import InputLimits
from avatar.settings import Picture
from avatar.ui import payloads
from avatar.ui.gallery.gallery_html import render_gallery
from avatar.ui.portrait import framing_panel, point_editor
from avatar.ui.state.examples import Examples


@pytest.fixture(scope="module")
def value() -> dict[str, Any]:
    look = point_editor.look_at(PORTRAIT, Examples(), InputLimits())
    return point_editor.question(look, PORTRAIT, "en")["value"]


@pytest.fixture
def sea(tmp_path: Path) -> Path:
    Image.new("RGB", (300, 200), (10, 20, 200)).save(tmp_path / "sea.png")
    return tmp_path / "sea.png"


def test_the_page_sends_words_colours_and_uploads(value, sea):
    assert value["background"] == "keep"
    for background in ("blur", "green", "transparent", "#102030"):
        assert framing_panel.picture_settings({**value, "background": background}).background == background
    uploaded = {**value, "background": "picture", "background_file": {"path": str(sea)}}
    assert framing_panel.picture_settings(uploaded) == Picture(background=str(sea))
    look = point_editor.look_at(PORTRAIT, Examples(), InputLimits())
    again = point_editor.question(look, PORTRAIT, "en", before=uploaded)["value"]
    assert framing_panel.picture_settings(again) == Picture(background=str(sea)), "kept when looked at again"


@pytest.mark.parametrize("file", [None, {}, {"path": 5}, {"path": ""}, "x", [1]])
def test_a_picture_that_was_not_uploaded_is_refused(value, file):
    with pytest.raises(BadInput):
        framing_panel.picture_settings({**value, "background": "picture", "background_file": file})


def test_no_path_passes_for_a_background(value, sea):
    for bad in (str(sea), "/etc/passwd", "Green", 5, ["blur"]):
        with pytest.raises(BadInput):
            framing_panel.picture_settings({**value, "background": bad})
        with pytest.raises(BadInput):
            parse_picture(**payloads.background(bad, None))


def test_the_api_takes_one_background(sea):
    assert parse_picture(**payloads.background("blur", None)).background == "blur"
    for word in (None, "keep", "", "picture"):
        assert parse_picture(**payloads.background(word, str(sea))).background == str(sea)
    with pytest.raises(BadInput, match="Both a background and a picture"):
        payloads.background("green", str(sea))


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_background_has_a_word(language):
    words = framing_panel.panel_words(language)
    assert all(words[f"background_{one}"] for one in framing_panel.BACKGROUNDS)
    assert "WebM" in words["frame_transparent"]


def test_a_transparent_run_downloads_the_webm(value, tmp_path):
    class Transparent(ScriptedEngine):
        def _finish(self, request: Any, *more: Any) -> Any:
            assert request.transparent_output == request.output.with_suffix(".webm")
            request.transparent_output.write_bytes(b"webm")
            return super()._finish(request, *more)

    page = Page(tmp_path, Transparent())
    asked = {**value, "background": "transparent"}
    updates = list(page.press(asked=asked))
    page.job_queue.close()
    assert page.engine.requests[0].background == "transparent"
    taken = updates_of(updates, "download")[-1]["value"]
    played = updates_of(updates, "final")[-1]["value"]
    assert (Path(taken).suffix, Path(played).suffix) == (".webm", ".mp4")
    app_state = page.app_state
    [entry] = app_state.gallery.entries()
    name = entry.taken.name
    assert name.endswith(".webm")
    assert app_state.gallery.file(entry.id, name, app_state.gallery.key(entry.id, name)) == entry.taken
    shown = render_gallery([entry], "en", app_state.url, 1e6, {})
    assert f'download="{entry.download_name}"' in shown
    assert entry.download_name.endswith(".webm")


def test_an_unfinished_video_keeps_its_background(value, sea, tmp_path):
    page = Page(tmp_path, ScriptedEngine())
    asked = {**value, "background": "picture", "background_file": {"path": str(sea)}}
    list(page.press(asked=asked))
    page.job_queue.close()
    [request] = page.engine.requests
    assert (request.background, request.background_picture.name) == ("picture", "background.png")


def test_what_an_unfinished_video_keeps_is_read_back(value, sea, tmp_path, request_with):
    kept = unfinished.keep(tmp_path / "half", request_with(str(sea)))
    assert kept.background_picture == tmp_path / "half" / "background.png"
    found, _ = unfinished.resume(tmp_path / "half", work=tmp_path / "w", output=tmp_path / "o.mp4")
    assert (found.background, found.background_picture) == ("picture", kept.background_picture)
    plain = unfinished.keep(tmp_path / "other", request_with("green"))
    assert (plain.background, plain.background_picture) == ("green", None)


@pytest.fixture
def request_with(tmp_path: Path):
    from pages import SPEECH

    from avatar.media.intake import open_request
    from avatar.preset import load_preset

    def make(background: str):
        preset, work = load_preset("cpu-preview"), tmp_path / "work"
        settings = Picture(background=background)
        given = {"output": tmp_path / "o.mp4", "work": work, "picture_settings": settings}
        return open_request(PORTRAIT, SPEECH, preset, **given)

    return make


def test_live_sessions_take_backgrounds_but_transparent(sea, tmp_path):
    preset = live_preset("live-preview")
    for background, wanted in (("blur", "blur"), (str(sea), "picture")):
        live = open_live_request(PORTRAIT, preset, tmp_path, picture_settings=Picture(background=background))
        assert live.background == wanted
        assert (live.background_picture is not None) == (wanted == "picture")
    with pytest.raises(BadInput, match="A live session cannot be transparent"):
        open_live_request(PORTRAIT, preset, tmp_path, picture_settings=Picture(background="transparent"))
