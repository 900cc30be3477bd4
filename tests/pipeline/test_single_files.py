"""ComfyUI's and GGUF's files, whole or mixed with official ones, give the official layout's video."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from avatar.checkpoints.locations import OFFICIAL, find_checkpoint
from avatar.checkpoints.model_sizes import ModelSizes
from avatar.checkpoints.transformer_config import ModelConfig
from avatar.errors import WeightsMissing
from avatar.geometry import Size
from avatar.media.intake import open_request
from avatar.media.sample_inputs import write_sample
from avatar.model.text_encoder import PromptTokenizer, TextWeights
from avatar.model.weights.checkpoint import CheckpointFiles, open_checkpoint
from avatar.model.weights.loading import load_transformer
from avatar.pipeline.pipeline import DiffusionPipeline
from avatar.preset import Preset, load_preset
from tests.fixtures.single_files import SIZES, build_official, transformer_of, write_comfyui, write_gguf

PRESET = load_preset("self-test")
NEWER, PREFIXED, BF16 = {"newer": True}, {"prefix": "model.diffusion_model."}, {"bf16": True}
FLOAT8_FILE = "diffusion_models/wan2.2_s2v_14B_fp8_scaled.safetensors"


@pytest.fixture
def official(tmp_path: Path, no_weights_elsewhere: None) -> Path:
    """The base model's folder; makers of other forms put their numbers back into it."""
    return build_official(tmp_path / "official")


def beside_the_lora(official: Path, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    shutil.copytree(official.parent / "LiveAvatar", folder / "LiveAvatar")
    return folder


def video_of(
    weights: Path,
    tmp_path: Path,
    name: str,
    preset: Preset = PRESET,
    source: DiffusionPipeline | None = None,
) -> np.ndarray:
    folder = tmp_path / name
    folder.mkdir()
    portrait, speech = write_sample(folder, Size(96, 96), 0.5)
    request = open_request(
        portrait, speech, preset, output=folder / "o.mp4", work=folder / "w", prompt="a fox"
    )
    frames = (source or DiffusionPipeline(preset, weights)).frames(request, lambda: False)
    return np.concatenate([part for part in frames if isinstance(part, np.ndarray)])


def assert_same(ours: np.ndarray, expected: np.ndarray) -> None:
    """But for the last bit of float32, which depends on where in memory a tensor lies."""
    different = np.abs(ours.astype(int) - expected)
    assert different.max() <= 1
    assert (different > 0).mean() < 1e-3


def assert_same_numbers(ours: CheckpointFiles, expected: CheckpointFiles) -> None:
    """Every tensor of the transformer and of the prompt encoder, bit by bit."""
    both = [load_transformer(files, "cpu", torch.float32).state_dict() for files in (ours, expected)]
    both_text = [TextWeights.open(files.text_encoder) for files in (ours, expected)]
    for name, value in both[1].items():
        assert torch.equal(both[0][name], value), name
    for name, value in both_text[1].tensors.items():
        assert torch.equal(both_text[0].tensors[name], value), name


@pytest.mark.parametrize("options", [{}, NEWER, PREFIXED, BF16], ids=["scaled", "newer", "prefixed", "bf16"])
def test_comfyui_files_give_the_same_video(options, official: Path, tmp_path: Path) -> None:
    comfy = beside_the_lora(official, tmp_path / "ComfyUI")
    write_comfyui(official, comfy / "models", **options)
    found = find_checkpoint(comfy)
    assert found.complete, found.missing
    assert {path.suffix for path in found.parts.values()} == {".safetensors"}
    expected = video_of(official.parent, tmp_path, "expected")
    assert expected.std() > 5
    assert_same_numbers(open_checkpoint(comfy), open_checkpoint(official.parent))
    assert_same(video_of(comfy, tmp_path, "ours"), expected)


def test_gguf_files_give_the_same_video(official: Path, tmp_path: Path) -> None:
    folder = beside_the_lora(official, tmp_path / "gguf")
    write_gguf(official, folder)
    expected = video_of(official.parent, tmp_path, "expected")
    rest = folder / "Wan2.2-S2V-14B"  # the others are official
    rest.mkdir()
    shutil.copy(official / OFFICIAL.vae, rest / OFFICIAL.vae)
    shutil.copytree(official / OFFICIAL.speech_encoder, rest / OFFICIAL.speech_encoder)
    found = find_checkpoint(folder)
    assert found.complete, found.missing
    suffixes = {part: path.suffix for part, path in found.parts.items()}
    assert (suffixes["transformer"], suffixes["text_encoder"], suffixes["tokenizer"]) == (".gguf",) * 3
    assert (suffixes["vae"], suffixes["speech_encoder"]) == (".pth", "")
    assert_same(video_of(folder, tmp_path, "ours"), expected)
    assert_same_numbers(open_checkpoint(folder), open_checkpoint(official.parent))


def test_a_named_file_is_the_transformer(official: Path, tmp_path: Path) -> None:
    """Beside a better one; its fellows lie in the other folders of ComfyUI's `models`."""
    comfy = beside_the_lora(official, tmp_path / "models")
    write_comfyui(official, comfy / "inside")
    for folder in (comfy / "inside").iterdir():
        folder.rename(comfy / folder.name)
    plain = comfy / "diffusion_models" / "wan2.2_s2v_14B_bf16.safetensors"
    save_file(transformer_of(official), plain)
    assert find_checkpoint(comfy).parts["transformer"] == plain
    found = find_checkpoint(comfy / FLOAT8_FILE)
    assert found.parts["transformer"] == comfy / FLOAT8_FILE
    assert found.complete, found.missing


def test_sizes_are_read_off_the_tensors(official: Path, tmp_path: Path) -> None:
    comfy = beside_the_lora(official, tmp_path / "ComfyUI")
    write_comfyui(official, comfy / "models")
    single, whole = open_checkpoint(comfy), open_checkpoint(official.parent)
    assert ModelConfig.load(single.config) == ModelConfig.load(whole.config) == SIZES
    assert ModelSizes.of(find_checkpoint(comfy)) == ModelSizes.of(find_checkpoint(official.parent))


def test_words_are_the_same_without_a_tokenizer_file(official: Path, tmp_path: Path) -> None:
    comfy, blocks = (beside_the_lora(official, tmp_path / name) for name in ("ComfyUI", "gguf"))
    write_comfyui(official, comfy / "models")
    write_gguf(official, blocks)
    text = "A fox, in soft light: «ein Fuchs», 狐狸 & more"
    expected = PromptTokenizer(official / OFFICIAL.tokenizer)(text)
    for file in [*(comfy / "models/text_encoders").iterdir(), *blocks.glob("umt5*")]:
        assert torch.equal(PromptTokenizer(file)(text), expected)


def test_fp8_is_within_its_rounding_of_the_official_numbers(official: Path, tmp_path: Path) -> None:
    before = load_transformer(open_checkpoint(official.parent), "cpu", torch.float32).state_dict()
    comfy = beside_the_lora(official, tmp_path / "ComfyUI")
    write_comfyui(official, comfy / "models")
    after = load_transformer(open_checkpoint(comfy), "cpu", torch.float32).state_dict()
    assert before.keys() == after.keys()
    changed = 0
    for name, value in before.items():
        error = (after[name] - value).norm() / value.norm()
        changed += bool(error > 0)
        assert error < 0.036, name  # half a step of three bits, at most
    assert changed > 20


def unscaled(tensors: dict) -> str:
    name = next(name for name in tensors if name.endswith(".scale_weight"))
    tensors["blocks.0.self_attn.q.extra"] = tensors.pop(name)
    return "unexpected: blocks.0.self_attn.q.extra"


def lose(tensors: dict) -> str:
    del tensors["blocks.2.ffn.0.bias"]
    return "missing: blocks.2.ffn.0.bias"


def other_format(tensors: dict) -> str:
    mark = b'{"format": "nvfp4"}'
    tensors["blocks.2.ffn.0.comfy_quant"] = torch.tensor(list(mark), dtype=torch.uint8)
    return "nvfp4"


@pytest.mark.parametrize("damage", [unscaled, lose, other_format])
def test_a_broken_single_file_is_refused_by_name(
    damage: Callable[[dict], str], official: Path, tmp_path: Path
) -> None:
    comfy = beside_the_lora(official, tmp_path / "ComfyUI")
    write_comfyui(official, comfy / "models")
    file = comfy / "models" / FLOAT8_FILE
    tensors = load_file(file)
    words = damage(tensors)
    save_file(tensors, file)
    with pytest.raises(WeightsMissing) as refused:
        load_transformer(open_checkpoint(comfy), "cpu", torch.float32)
    assert words in str(refused.value)
