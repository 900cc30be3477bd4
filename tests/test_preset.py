"""Presets: what is shipped, and that every file is either obeyed or refused with the nearest word."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest

from avatar.checkpoints.transformer_config import ModelConfig
from avatar.errors import BadInput
from avatar.media.prompt import check_prompt
from avatar.preset import PRESETS_DIR, TABLES, Preset, load_preset, load_presets
from avatar.settings import SECTIONS, SETTINGS

SHIPPED = {
    "96gb", "80gb", "48gb", "32gb", "24gb", "16gb", "12gb", "10gb", "8gb",
    "2x24gb", "2x32gb", "2x48gb", "3x24gb", "3x32gb",
    "4x16gb", "4x4090-low-vram", "4x32gb", "4x80gb-realtime", "5x80gb-tpp",
    "cpu-preview", "self-test", "auto",
}  # fmt: skip
HEAD = 'title = "T"\nsummary = "S"\nengine = "diffusion"\n'


def load(folder: Path, text: str) -> Preset:
    (folder / "mine.toml").write_text(text, encoding="utf-8")
    return load_preset("mine", folder)


def test_all_shipped_presets_load_by_rank_and_speak_two_languages():
    presets = load_presets()
    assert {preset.name for preset in presets} == SHIPPED
    assert presets[0].name == "auto"
    assert [preset.rank for preset in presets] == sorted((preset.rank for preset in presets), reverse=True)
    assert len({preset.rank for preset in presets}) == len(presets)
    for preset in presets:
        assert preset.title
        assert preset.summary
        assert preset.title_zh
        assert preset.summary_zh
        json.dumps(preset.as_dict())


def test_the_low_memory_preset_is_the_guides():
    preset = load_preset("4x4090-low-vram")
    generation, parallel = preset.generation, preset.parallel
    assert (generation.size, generation.infer_frames, generation.sample_steps) == ("688*368", 32, 3)
    assert (parallel.layout, parallel.num_gpus_dit, parallel.decode_gpu) == ("layers", 3, True)
    assert preset.memory.enable_online_decode
    assert preset.with_settings(layout="ulysses", ulysses_size=3).parallel.ulysses_size == 3


def test_presets_of_the_model_have_a_short_prompt():
    """Fewer than 32 tokens make a step faster: at most 20 English words of 1.5 tokens."""
    for preset in load_presets():
        prompt, is_model = preset.generation.prompt, preset.requires.weights == "live-avatar"
        assert bool(prompt) == is_model, preset.name
        assert len(prompt.split()) <= 20
        assert check_prompt(prompt, ModelConfig().text_len) == prompt


def test_every_key_of_every_section_is_read(tmp_path):
    text = (
        HEAD
        + 'title_zh = "题"\nsummary_zh = "要"\nrank = 5\n'
        + '[requires]\nnum_gpus = 2\nvram_gib = 24\ncompute_capability = "8.9"\nhost_ram_gib = 1.5\n'
        + 'weights = "live-avatar"\n'
        + '[generation]\nsize = "640*480"\ninfer_frames = 32\nnum_clip = 3\nsample_steps = 3\nshift = 2\n'
        + 'trim = true\nseed = 9\nprompt = "p"\nmotion = "calm"\nupscale = "1080p"\n'
        + '[memory]\nenable_online_decode = false\noffload_model = true\nweight_dtype = "fp8"\n'
        + 'ring_dtype = "fp32"\nattention_dtype = "int8"\ntext_encoder = "cpu"\nlora = "a.safetensors"\n'
        + 'decoder = "tiny"\n'
        + '[parallel]\nlayout = "ulysses"\nnum_gpus_dit = 3\nulysses_size = 3\ndecode_gpu = true\n'
        + '[fallback]\norder = ["offload", "size"]\n'
    )
    preset = load(tmp_path, text)
    plain = load(tmp_path, HEAD)
    for name, section in TABLES.items():
        for field in fields(section):
            read, default = (getattr(getattr(p, name), field.name) for p in (preset, plain))
            assert read != default, f"{name}.{field.name} was not read"
    assert preset.requires.vram_gib == 24.0
    assert isinstance(preset.requires.vram_gib, float)
    assert preset.fallback.order == ("offload", "size")
    assert (preset.rank, preset.title_zh, preset.summary_zh) == (5, "题", "要")


ALL_KEYS = [("", field.name) for field in fields(Preset) if field.name not in ("name", *TABLES)]
ALL_KEYS += [(name, field.name) for name, section in TABLES.items() for field in fields(section)]


@pytest.mark.parametrize(("section", "key"), [*ALL_KEYS, *(("", name) for name in TABLES)])
def test_every_misspelt_key_is_refused_with_the_nearest_known(tmp_path, section, key):
    wrong = key[:-1] + "xx"
    if key in TABLES:
        text = f"{HEAD}[{wrong}]\n"
    else:
        text = f"{HEAD}[{section}]\n{wrong} = 1\n" if section else f"{wrong} = 1\n{HEAD}"
    with pytest.raises(BadInput) as caught:
        load(tmp_path, text)
    assert f"unknown key {wrong!r}" in caught.value.message
    assert f"Did you mean {key!r}?" in caught.value.message
    assert "mine.toml" in caught.value.message
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(("section", "key"), ALL_KEYS)
def test_every_key_of_a_wrong_type_is_refused(tmp_path, section, key):
    wrong = "2026-01-01"  # a date: the type of no setting
    text = f"{HEAD}[{section}]\n{key} = {wrong}\n" if section else _replaced(key, wrong)
    with pytest.raises(BadInput) as caught:
        load(tmp_path, text)
    assert key in caught.value.message
    assert caught.value.remedy


def _replaced(key: str, value: str) -> str:
    lines = [line for line in HEAD.splitlines() if not line.startswith(f"{key} ")]
    return "\n".join([*lines, f"{key} = {value}"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[generation]\nsize = "abc"', ["size", "abc", "width*height"]),
        ('[generation]\nsize = "0*384"', ["size"]),
        ("[generation]\ninfer_frames = 30", ["infer_frames", "30", "multiple of 4"]),
        ("[generation]\ninfer_frames = 12", ["infer_frames", "from 16 to"]),
        ("[generation]\ninfer_frames = 48.0", ["infer_frames", "whole number"]),
        ("[generation]\ninfer_frames = true", ["infer_frames", "whole number"]),
        ("[generation]\nsample_steps = 0", ["sample_steps", "1 to 8"]),
        ("[generation]\nsample_steps = 9", ["sample_steps", "1 to 8"]),
        ("[generation]\nnum_clip = -1", ["num_clip"]),
        ("[generation]\nshift = 0", ["shift"]),
        ("[generation]\nshift = nan", ["shift"]),
        ("[generation]\nsample_guide_scale = 0.0", ["unknown key", "sample_guide_scale"]),
        ("[generation]\nseed = -1", ["seed"]),
        ("[generation]\nfps = 25", ["unknown key", "fps"]),
        ("[requires]\nvram_gib = -1", ["vram_gib", "from 0 to"]),
        ("[memory]\nenable_online_decode = 1", ["enable_online_decode", "true or false"]),
        ('[memory]\nweight_dtype = "fp9"', ["weight_dtype", "'fp8'", "bf16"]),
        ('[memory]\ntext_encoder = "gpus"', ["text_encoder", "'gpu'", "sharded"]),
        ('[parallel]\nlayout = "layer"', ["layout", "'layers'"]),
        ("[parallel]\nnum_gpus_dit = 0", ["num_gpus_dit"]),
        ("[parallel]\nulysses_size = 0", ["ulysses_size"]),
        ('[requires]\ncompute_capability = "8"', ["compute_capability", "8.9"]),
        ('[requires]\nweights = "live_avatar"', ["weights", "'live-avatar'"]),
        ('[fallback]\norder = "size"', ["order", "list"]),
        ('[fallback]\norder = ["sizes"]', ["order", "'size'"]),
        ("memory = 3", ["memory", "[memory]"]),
        ("[memory", ["cannot be read"]),
    ],
)
def test_wrong_values_say_what_they_may_be(tmp_path, text, words):
    with pytest.raises(BadInput) as caught:
        load(tmp_path, HEAD + text)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("key", ["title", "summary", "engine"])
def test_what_must_be_there(tmp_path, key):
    text = "".join(line for line in HEAD.splitlines(True) if not line.startswith(key))
    with pytest.raises(BadInput, match=f"'{key}' is missing"):
        load(tmp_path, text)


def test_an_engine_that_is_none(tmp_path):
    with pytest.raises(BadInput, match=r"engine is 'difusion'.*'diffusion'"):
        load(tmp_path, HEAD.replace("diffusion", "difusion"))


@pytest.mark.parametrize(
    "text",
    ["[generation]\nsample_steps = 4", "[memory]\noffload_model = true", "[parallel]\nnum_gpus_dit = 2"],
)
def test_a_preview_preset_with_settings_that_the_preview_has_not(tmp_path, text):
    head = HEAD.replace("diffusion", "preview")
    name = text.split("\n")[1].split(" ")[0]
    with pytest.raises(BadInput, match=f"preview engine cannot honour {name}"):
        load(tmp_path, head + text)
    assert load(tmp_path, head + "[generation]\nseed = 3").generation.seed == 3


def test_a_file_in_the_folder_and_a_path_both_work(tmp_path, monkeypatch):
    (tmp_path / "own.toml").write_text(HEAD)
    assert load_preset("own", tmp_path).name == "own"
    assert load_preset(str(tmp_path / "own.toml")).name == "own"
    assert [preset.name for preset in load_presets(tmp_path)] == ["own"]
    monkeypatch.chdir(tmp_path)
    assert load_preset("own.toml").title == "T"


def test_no_such_preset_names_the_nearest():
    with pytest.raises(BadInput, match=r"'48g'\. Did you mean '48gb'\?") as caught:
        load_preset("48g")
    assert "cpu-preview" in caught.value.remedy


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"title = "])
def test_a_file_that_is_no_toml(tmp_path, content):
    (tmp_path / "bad.toml").write_bytes(content)
    with pytest.raises(BadInput, match=r"bad\.toml cannot be read") as caught:
        load_preset(str(tmp_path / "bad.toml"))
    assert str(tmp_path) not in str(caught.value)


def test_settings_are_laid_over_and_checked():
    preset = load_preset("80gb")
    changed = preset.with_settings(size="384*256", offload_model=True, shift=5, seed=None)
    assert (changed.generation.size, changed.memory.offload_model, changed.generation.shift) == (
        "384*256",
        True,
        5.0,
    )
    assert changed.generation.seed == preset.generation.seed
    assert preset.generation.size == "704*384"
    with pytest.raises(BadInput, match=r"no setting 'sizes'\. Did you mean 'size'"):
        preset.with_settings(sizes="1*1")
    with pytest.raises(BadInput, match="sample_steps"):
        preset.with_settings(sample_steps="4")
    with pytest.raises(BadInput, match="infer_frames"):
        preset.with_settings(infer_frames=30)


def test_a_preset_saved_by_an_earlier_version_still_opens():
    preset = load_preset("80gb")
    saved = json.loads(json.dumps(preset.as_dict()))
    saved["generation"] |= {"fps": 25, "sample_guide_scale": 0.0}
    assert Preset.from_dict(saved) == preset
    with pytest.raises(BadInput, match="unknown key 'sizes'"):
        Preset.from_dict({**saved, "generation": {"sizes": "64*64"}})


def test_setting_names_are_unique_across_sections():
    names = [field.name for section in SECTIONS.values() for field in fields(section)]
    assert len(names) == len(set(names)) == len(SETTINGS)


def test_presets_lie_beside_the_package():
    assert PRESETS_DIR.name == "presets"
    assert {path.stem for path in PRESETS_DIR.glob("*.toml")} >= SHIPPED
