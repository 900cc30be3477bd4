"""What each engine refuses: every name is a real setting or flag, and every setting has its answer."""

from __future__ import annotations

import pytest

from avatar.abilities import PREVIEW_REFUSES, REFUSES, refuse_settings
from avatar.errors import BadInput
from avatar.planning.layout import unsupported
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


@pytest.mark.parametrize("name", ["80gb", "48gb", "24gb", "12gb", "self-test", "cpu-preview"])
def test_presets_for_one_gpu_and_the_preview_are_all_there(name):
    assert unsupported(load_preset(name)) == []


def test_offloading_is_for_one_gpu_alone():
    (line,) = unsupported(load_preset("24gb").with_settings(layout="layers", num_gpus_dit=2))
    assert "offload_model True" in line
