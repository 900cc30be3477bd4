"""The LoRA: merged as direct arithmetic does, under every way of naming its keys; anything else refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from avatar.checkpoints.locations import LORA_FILE
from avatar.errors import WeightsMissing
from avatar.model.weights.checkpoint import open_checkpoint
from avatar.model.weights.loading import open_transformer
from avatar.model.weights.lora import ALPHA, open_lora
from avatar.model.weights.tensor_files import Shapes
from avatar.model.weights.tiny import LORA_RANK

LINEAR = "blocks.1.ffn.0"
PREFIX = "base_model.model."


@pytest.fixture(scope="module")
def base(tiny_checkpoint: Path) -> Shapes:
    model = open_transformer(open_checkpoint(tiny_checkpoint))
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


@pytest.fixture
def adapter(tiny_checkpoint: Path) -> dict[str, Tensor]:
    return load_file(tiny_checkpoint / "LiveAvatar" / LORA_FILE)


def merged(tensors: dict[str, Tensor], base: Shapes, weight: Tensor, folder: Path, name: str) -> Tensor:
    save_file(tensors, folder / LORA_FILE)
    with open_lora(folder / LORA_FILE, base) as lora:
        return lora.merge(name, weight)


def test_merging_is_direct_arithmetic(adapter: dict[str, Tensor], base: Shapes, tmp_path: Path) -> None:
    weight = torch.randn(base[f"{LINEAR}.weight"]).bfloat16()
    down, up = (adapter[f"{PREFIX}{LINEAR}.lora_{side}.weight"].double() for side in "AB")
    expected = weight.double() + ALPHA / LORA_RANK * up @ down
    ours = merged(adapter, base, weight, tmp_path, f"{LINEAR}.weight")
    assert ours.dtype == torch.float32
    assert torch.allclose(ours.double(), expected, atol=1e-6)
    assert not torch.allclose(ours, weight.float(), atol=1e-3)


def test_what_the_adapter_leaves_alone_comes_back_itself(
    adapter: dict[str, Tensor], base: Shapes, tmp_path: Path
) -> None:
    bias = torch.randn(base[f"{LINEAR}.bias"])
    assert merged(adapter, base, bias, tmp_path, f"{LINEAR}.bias") is bias


def test_every_linear_of_every_attention_and_feed_forward_has_a_pair(adapter: dict[str, Tensor]) -> None:
    """3 layers of self- and cross-attention and feed-forward, 2 injections: 3 · (4 + 4 + 2) + 2 · 4 pairs."""
    assert len(adapter) == 2 * (3 * 10 + 2 * 4)


@pytest.mark.parametrize(
    "rename",
    [
        lambda key: key.removeprefix(PREFIX),
        lambda key: key.replace(".lora_A.", ".lora_A.default.").replace(".lora_B.", ".lora_B.default."),
        lambda key: key.removeprefix(PREFIX).replace("_A.", "_A.default.").replace("_B.", "_B.default."),
    ],
    ids=["no prefix", "default", "default, no prefix"],
)
def test_keys_may_be_named_in_pefts_ways(
    rename: Callable[[str], str], adapter: dict[str, Tensor], base: Shapes, tmp_path: Path
) -> None:
    weight, name = torch.randn(base[f"{LINEAR}.weight"]), f"{LINEAR}.weight"
    renamed = {rename(key): value for key, value in adapter.items()}
    assert renamed.keys() != adapter.keys()
    assert torch.equal(
        merged(renamed, base, weight, tmp_path, name), merged(adapter, base, weight, tmp_path, name)
    )


@pytest.mark.parametrize(
    "key", ["head.head.bias", f"{PREFIX}head.head.bias", "head.head.modules_to_save.default.bias"]
)
def test_whole_tensors_replace_the_bases(
    key: str, adapter: dict[str, Tensor], base: Shapes, tmp_path: Path
) -> None:
    adapter[key] = torch.full(base["head.head.bias"], 3.0)
    ours = merged(adapter, base, torch.zeros(base["head.head.bias"]), tmp_path, "head.head.bias")
    assert torch.equal(ours, adapter[key])


def test_a_whole_base_layer_is_replaced_and_then_adapted(
    adapter: dict[str, Tensor], base: Shapes, tmp_path: Path
) -> None:
    name = f"{LINEAR}.weight"
    expected = merged(adapter, base, torch.ones(base[name]), tmp_path, name)
    adapter[f"{PREFIX}{LINEAR}.base_layer.weight"] = torch.ones(base[name])
    assert torch.equal(merged(adapter, base, torch.zeros(base[name]), tmp_path, name), expected)


def lose_half(tensors: dict[str, Tensor]) -> None:
    del tensors[f"{PREFIX}{LINEAR}.lora_B.weight"]


def lose_pair(tensors: dict[str, Tensor]) -> None:
    lose_half(tensors)
    del tensors[f"{PREFIX}{LINEAR}.lora_A.weight"]


def stranger(tensors: dict[str, Tensor]) -> None:
    tensors["blocks.7.self_attn.q.lora_A.weight"] = torch.zeros(4, 64)


def no_linear(tensors: dict[str, Tensor]) -> None:
    tensors["head.head.lora_A.weight"] = torch.zeros(4, 64)
    tensors["head.head.lora_B.weight"] = torch.zeros(64, 4)


def other_naming(tensors: dict[str, Tensor]) -> None:
    tensors[f"diffusion_model.{LINEAR}.lora_down.weight"] = torch.zeros(4, 64)


def narrow(tensors: dict[str, Tensor]) -> None:
    tensors[f"{PREFIX}{LINEAR}.lora_A.weight"] = torch.zeros(4, 32)


def two_ranks(tensors: dict[str, Tensor]) -> None:
    tensors[f"{PREFIX}{LINEAR}.lora_A.weight"] = torch.zeros(8, 64)


def scalar(tensors: dict[str, Tensor]) -> None:
    tensors[f"{PREFIX}{LINEAR}.lora_A.weight"] = torch.zeros(())


def whole_of_another_shape(tensors: dict[str, Tensor]) -> None:
    tensors["head.head.bias"] = torch.zeros(3)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lose_half, [f"missing: {LINEAR}.weight (lora_B)"]),
        (lose_pair, ["missing", f"{LINEAR}.weight (lora_A)", f"{LINEAR}.weight (lora_B)"]),
        (stranger, ["unexpected: blocks.7.self_attn.q.weight (lora_A)"]),
        (no_linear, ["unexpected: head.head.weight (lora_A), head.head.weight (lora_B)"]),
        (other_naming, [f"diffusion_model.{LINEAR}.lora_down.weight", "the same tensor"]),
        (narrow, [f"{LINEAR}.weight (lora_A) is 4×32 instead of 4×64"]),
        (two_ranks, [f"{LINEAR}.weight (lora_B) is 160×4 instead of 160×8"]),
        (scalar, [f"{LINEAR}.weight (lora_A) is a single number"]),
        (whole_of_another_shape, ["head.head.bias is 3 instead of 64"]),
    ],
)
def test_anything_else_is_refused_by_name(
    damage: Callable[[dict[str, Tensor]], None],
    words: list[str],
    adapter: dict[str, Tensor],
    base: Shapes,
    tmp_path: Path,
) -> None:
    damage(adapter)
    save_file(adapter, tmp_path / LORA_FILE)
    with pytest.raises(WeightsMissing) as refused, open_lora(tmp_path / LORA_FILE, base):
        pass
    assert LORA_FILE in str(refused.value)
    for word in words:
        assert word in str(refused.value)


def test_a_lora_of_another_model_is_refused_in_one_error(
    adapter: dict[str, Tensor], base: Shapes, tmp_path: Path
) -> None:
    """One of half the width and a layer more: every tensor is named, layers folded."""
    other = {key: value[..., : value.shape[-1] // 2] for key, value in adapter.items() if "lora_A" in key}
    other |= {key: value for key, value in adapter.items() if "lora_B" in key}
    other |= {key.replace("blocks.0", "blocks.3"): value for key, value in other.items() if "blocks.0" in key}
    save_file({key: value.contiguous().clone() for key, value in other.items()}, tmp_path / LORA_FILE)
    with pytest.raises(WeightsMissing) as refused, open_lora(tmp_path / LORA_FILE, base):
        pass
    text = str(refused.value)
    assert "unexpected: blocks.3.cross_attn.k.weight (lora_A)" in text
    assert "blocks.{0..2}.ffn.2.weight (lora_A) is 4×80 instead of 4×160" in text
    assert "audio_injector.injector.{0..1}.q.weight (lora_A) is 4×32 instead of 4×64" in text
