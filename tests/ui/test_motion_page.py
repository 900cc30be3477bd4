"""How much the person moves, on the page: its choices in both languages, and what reaches a run."""

from __future__ import annotations

import pytest
from engines import ScriptedEngine
from pages import Page

from avatar.errors import BadInput
from avatar.settings import FORM, SETTINGS
from avatar.ui.compare.compare_choices import chosen_settings, read_pair, value_choices
from avatar.ui.presets.settings_form import form_choices

LEVELS = ["still", "calm", "normal", "lively"]


@pytest.fixture
def page(tmp_path):
    made = Page(tmp_path, ScriptedEngine())
    yield made
    made.app_state.close()


@pytest.mark.parametrize(("language", "words"), [("en", LEVELS), ("zh", ["静止", "平缓", "正常", "生动"])])
def test_the_form_offers_each_level_in_the_pages_language(language, words):
    assert form_choices("motion", language) == {"choices": list(zip(words, LEVELS))}
    assert form_choices("seed", language) == {}
    assert "motion" in FORM


def test_the_form_keeps_the_words_of_other_settings():
    names = list(SETTINGS["layout"].choices)
    assert form_choices("layout", "zh") == {"choices": list(zip(names, names))}


def test_the_preview_takes_the_level_of_the_form(page):
    values = ["lively" if name == "motion" else None for name in FORM]
    settings = page.app_state.machine.form_settings("cpu-preview", values)
    assert page.app_state.machine.with_settings("cpu-preview", settings).generation.motion == "lively"
    with pytest.raises(BadInput, match="still, calm, normal, lively"):
        page.app_state.machine.with_settings("cpu-preview", {"motion": "wild"})


def test_two_levels_are_compared_on_the_page(page):
    state = page.app_state
    assert value_choices(state, "motion", "zh")[0] == ("静止", "still")
    first, second = read_pair(state, "motion", ("calm", "lively"), "en")
    form = [state.machine.preset("cpu-preview").setting(name) for name in FORM]
    assert chosen_settings(state, "cpu-preview", form, first)[1]["motion"] == "calm"
    assert chosen_settings(state, "cpu-preview", form, second)[1]["motion"] == "lively"
