"""The table of settings: every one is offered, checked and refused by what it declares alone."""

from __future__ import annotations

import argparse
from dataclasses import fields

import pytest

from avatar.commands.setting_flags import add_preset
from avatar.errors import BadInput
from avatar.planning.layout import unsupported
from avatar.preset import load_preset
from avatar.settings import FORM, OTHER_REFUSALS, SECTIONS, SETTINGS, refusal, refuse_settings
from avatar.ui.translations import TRANSLATIONS

PREVIEW_HONOURS = {"size", "seed", "trim", "motion", "upscale"}


def test_the_table_holds_every_field_of_every_section():
    assert list(SETTINGS) == [field.name for section in SECTIONS.values() for field in fields(section)]
    assert all(one.setting.help for one in SETTINGS.values())


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_has_a_flag(name):
    parser = argparse.ArgumentParser()
    add_preset(parser)
    one = SETTINGS[name]
    text = {int: "3", float: "2.5", bool: "False", str: (one.choices or ("64*64",))[-1]}[one.kind]
    for flag in (one.setting.flag or f"--{name}", *one.setting.spellings):
        value = getattr(parser.parse_args([flag, text]), name)
        assert (type(value), str(value)) == (one.kind, text)
    if one.setting.joined_by:
        parsed = parser.parse_args([f"--{name}", "a", f"--{name}", "b:0.5"])
        assert getattr(parsed, name) == f"a{one.setting.joined_by}b:0.5"
    for flag, value in one.setting.constants.items():
        assert getattr(parser.parse_args([flag]), name) == value
    assert getattr(parser.parse_args([]), name) is None


@pytest.mark.parametrize("name", FORM)
def test_every_field_of_the_form_has_a_name_in_every_language(name):
    assert all(one.page[name] for one in TRANSLATIONS.values())


def test_the_preview_honours_no_more_than_it_can():
    assert {name for name in SETTINGS if not refusal("preview", name)} == PREVIEW_HONOURS
    assert not any(refusal("auto", name) for name in (*SETTINGS, *OTHER_REFUSALS))


@pytest.mark.parametrize("engine", ["preview", "diffusion"])
def test_refusals_name_the_engine_and_the_reason(engine):
    refused = [name for name in (*SETTINGS, *OTHER_REFUSALS) if refusal(engine, name)]
    assert refused
    for name in refused:
        reason = refusal(engine, name)
        with pytest.raises(BadInput, match=f"{engine} engine cannot honour {name}: {reason}"):
            refuse_settings(engine, ["size", name])
    refuse_settings(engine, PREVIEW_HONOURS)


@pytest.mark.parametrize("name", ["80gb", "48gb", "24gb", "12gb", "self-test", "cpu-preview"])
def test_single_gpu_presets_and_the_preview_are_supported(name):
    assert unsupported(load_preset(name)) == []


def test_offloading_is_for_one_gpu_alone():
    (line,) = unsupported(load_preset("24gb").with_settings(layout="layers", num_gpus_dit=2))
    assert "offload_model True" in line
