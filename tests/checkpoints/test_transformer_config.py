"""Reading a checkpoint's config.json."""

from __future__ import annotations

import json

import pytest

from avatar.checkpoints.transformer_config import ModelConfig
from avatar.errors import WeightsMissing
from tests.pipeline.streams import Stream


def test_published_keys_are_read():
    config = ModelConfig.from_dict(Stream.load("basic").settings["model"] | {"_class_name": "WanModel_S2V"})
    assert (config.dim, config.num_layers, config.audio_inject_layers, config.head_dim) == (64, 3, (0, 2), 32)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"enable_framepack": False}, "enable_framepack is False"),
        ({"model_type": "t2v"}, "model_type is 't2v'"),
        ({"patch_size": [1, 4, 4]}, "patch_size"),
        ({"num_heads": 3}, "3 heads"),
        ({"audio_inject_layers": [0, 7]}, "audio_inject_layers"),
        ({"dim": "wide"}, "dim is 'wide'"),
    ],
)
def test_another_model_is_refused_by_name(change, words):
    with pytest.raises(WeightsMissing, match=words):
        ModelConfig.from_dict(Stream.load("basic").settings["model"] | change)


def test_missing_widths_are_named():
    with pytest.raises(WeightsMissing, match="ffn_dim"):
        ModelConfig.from_dict({"dim": 64, "num_heads": 2, "num_layers": 1, "audio_inject_layers": [0]})


@pytest.mark.parametrize("content", ["{", json.dumps([1])])
def test_an_unreadable_file_names_no_folder(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(WeightsMissing) as caught:
        ModelConfig.load(path)
    assert "config.json" in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
