"""How much the diffusion model is asked to move: words in its prompt, which nothing else sees."""

from __future__ import annotations

from pathlib import Path

import pytest
from media_samples import PRESET_SETTINGS, picture, tone, write_wav
from PIL import Image

from avatar.errors import BadInput
from avatar.media.intake import open_request
from avatar.media.prompt import PRESETS_MOTION, check_prompt, prompt_for, worded
from avatar.preset import Preset, load_presets
from avatar.runtime.fingerprint import origin
from tests.fixtures.tokenizer import write_tokenizer

MOVING = ("still", "calm", "lively")


def test_presets_prompts_are_reworded_rather_than_contradicted():
    prompts = {one.generation.prompt for one in load_presets()} - {""}
    assert len(prompts) > 0
    for prompt in prompts:
        assert PRESETS_MOTION in prompt
        others = {worded(prompt, motion) for motion in MOVING}
        assert len(others) == len(MOVING)
        assert not any(PRESETS_MOTION in one for one in others)
        assert all(one.startswith("A person faces the camera and speaks") for one in others)
        assert all(one.endswith("in soft light.") for one in others)


@pytest.mark.parametrize("motion", MOVING)
def test_a_prompt_of_ones_own_is_kept_whole(motion):
    own = "A fox in a red coat."
    assert worded(own, motion).startswith(f"{own} ")
    assert worded("", motion) == worded(own, motion).removeprefix(f"{own} ")


def test_normal_changes_no_prompt():
    for prompt in ("", "A fox.", f"A fox {PRESETS_MOTION}."):
        assert worded(prompt, "normal") == prompt


def test_the_words_count_as_part_of_the_prompt(tmp_path):
    folder = write_tokenizer(tmp_path / "umt5")
    assert check_prompt("a " * 505, 512, folder) == ("a " * 505).strip()
    with pytest.raises(BadInput, match="the model reads at most 512"):
        check_prompt("a " * 505, 512, folder, "lively")


def asked(folder: Path, motion: str):
    folder.mkdir()
    Image.fromarray(picture(512, 512)).save(folder / "p.png")
    write_wav(folder / "s.wav", tone(), 16_000)
    preset = Preset(**PRESET_SETTINGS | {"engine": "diffusion"}).with_settings(motion=motion)
    places = {"output": folder / "o.mp4", "work": folder / "w"}
    return open_request(folder / "p.png", folder / "s.wav", preset, prompt="A fox.", **places)


def test_a_request_keeps_the_users_own_words(tmp_path):
    lively = asked(tmp_path / "lively", "lively")
    assert lively.prompt == "A fox."
    assert prompt_for(lively) == worded("A fox.", "lively")


def test_only_another_motion_is_another_video(tmp_path):
    usual, lively = (origin(asked(tmp_path / name, name)) for name in ("normal", "lively"))
    assert {key for key in usual if usual[key] != lively[key]} == {"preset"}
