"""What each engine refuses: every name is a real setting or flag, and every setting has its answer."""

from __future__ import annotations

import pytest

from avatar.abilities import PREVIEW_REFUSES, REFUSES, refuse_settings, unsupported
from avatar.errors import BadInput
from avatar.preset import SETTINGS, load_preset

FLAGS = {"points", "head_only", "ckpt_dir"}  # not settings, and yet not for every engine
PREVIEW_HONOURS = {"size", "seed", "fps"}


def test_every_setting_is_either_honoured_or_refused_by_the_preview():
    assert PREVIEW_HONOURS | (PREVIEW_REFUSES.keys() - FLAGS) == SETTINGS.keys()
    assert not PREVIEW_HONOURS & PREVIEW_REFUSES.keys()


@pytest.mark.parametrize("engine", sorted(REFUSES))
def test_refusals_name_real_things_and_a_reason(engine):
    for name, reason in REFUSES[engine].items():
        assert name in SETTINGS.keys() | FLAGS
        with pytest.raises(BadInput, match=f"{engine} engine cannot honour {name}: {reason}"):
            refuse_settings(engine, ["size", name])
    refuse_settings(engine, PREVIEW_HONOURS)


def test_the_single_gpu_preset_is_all_there_in_bf16_and_fp8_and_the_preview_too():
    assert unsupported(load_preset("80gb")) == []
    assert unsupported(load_preset("80gb").with_settings(weight_dtype="fp8")) == []
    assert unsupported(load_preset("self-test")) == []
    assert unsupported(load_preset("cpu-preview")) == []


def test_several_reasons_are_told_one_by_one():
    lines = unsupported(load_preset("24gb"))
    assert len(lines) == 2
    assert "ring_dtype 'fp8'" in lines[0]
