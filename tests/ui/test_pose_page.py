"""A pose video through the page and the API: for the diffusion engine alone, and only an upload."""

from __future__ import annotations

from pathlib import Path

import gradio as gr
import pytest
from engines import ScriptedEngine
from pages import PORTRAIT, SPEECH, Page

from avatar.errors import BadInput
from avatar.settings import FORM
from avatar.ui.generate.generate import Generate
from avatar.ui.presets.settings_form import leading_pose
from avatar.ui.state import submission
from avatar.ui.widgets import PICKERS, file_picker
from tests.fixtures.pose_films import film


@pytest.fixture
def page(tmp_path):
    made = Page(tmp_path, ScriptedEngine())
    yield made
    made.app_state.close()


def test_the_pose_comes_after_the_form_and_only_where_it_leads(tmp_path):
    form = [None] * len(FORM)
    assert leading_pose([*form, "/up/dance.mp4"], "diffusion") == Path("/up/dance.mp4")
    assert leading_pose([*form, "/up/dance.mp4"], "preview") is None
    assert leading_pose([*form, None], "diffusion") is None
    assert leading_pose(form, "diffusion") is None


def test_it_follows_the_forms_values(page):
    made: Generate = page.generate
    place = made.inputs.index("pose")
    assert made.inputs[place - len(FORM) : place] == list(FORM)


def test_a_run_of_the_diffusion_engine_gets_it(page, tmp_path):
    dance = film(tmp_path / "dance.mkv", 10, 25)
    run = submission.submit(page.app_state, PORTRAIT, SPEECH, "self-test", {}, pose=dance)
    assert run.request.pose_name == "dance.mkv"
    assert run.request.pose.is_file()


def test_the_preview_and_broken_files_refuse_it(page, tmp_path):
    dance = film(tmp_path / "dance.mkv", 10, 25)
    with pytest.raises(BadInput, match="preview engine cannot honour pose"):
        submission.submit(page.app_state, PORTRAIT, SPEECH, "cpu-preview", {}, pose=dance)
    (tmp_path / "x.mp4").write_bytes(b"no video" * 50)
    with pytest.raises(BadInput, match=r"x\.mp4 is not a video"):
        submission.submit(page.app_state, PORTRAIT, SPEECH, "self-test", {}, pose=tmp_path / "x.mp4")
    assert list((tmp_path / "scratch").glob("run-*")) == []


def test_its_picker_is_guarded_as_the_others_are():
    picker = file_picker(label="pose")
    assert isinstance(picker, PICKERS)
    assert picker.preprocess(None) is None
    from gradio.data_classes import FileData

    assert picker.preprocess(FileData(path="/up/dance.mp4")) == "/up/dance.mp4"
    assert isinstance(picker, gr.File)


def test_a_size_that_an_engine_cannot_make_is_refused_by_name(page, tmp_path):
    for settings in ({"size": "4096*4096"}, {"size": "1281*720"}):
        for ask in (
            lambda settings=settings: page.app_state.machine.with_settings("cpu-preview", settings),
            lambda settings=settings: submission.submit(
                page.app_state, PORTRAIT, SPEECH, "cpu-preview", settings
            ),
        ):
            with pytest.raises(
                BadInput, match=r"preview engine cannot make size .*: 1280\*720 is the largest"
            ):
                ask()
    values = [4096 if name == "seed" else "9999*9999" if name == "size" else None for name in FORM]
    form = page.app_state.machine.form_settings("cpu-preview", values)
    with pytest.raises(BadInput, match=r"cannot make size 9999\*9999"):
        page.app_state.machine.with_settings("cpu-preview", form)
