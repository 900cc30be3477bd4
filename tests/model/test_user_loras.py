"""Users' LoRAs: every trainer's way of naming keys, several with weights, in a run, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from avatar.checkpoints.locations import find_checkpoint
from avatar.checkpoints.lora_files import (
    ENVIRONMENT,
    UserLora,
    check_loras,
    known_loras,
    loras_digest,
    parse_loras,
)
from avatar.errors import BadInput
from avatar.model.quantize import FLOAT8
from avatar.model.weights.checkpoint import CheckpointFiles, open_checkpoint
from avatar.model.weights.loading import load_transformer, open_transformer
from avatar.model.weights.lora import open_user_lora
from avatar.model.weights.tensor_files import Shapes
from avatar.model.weights.weight_cache import key
from avatar.pipeline.checkpoint_choice import find_files
from avatar.preset import load_preset

LINEAR = "blocks.1.cross_attn.o"
WEIGHT = f"{LINEAR}.weight"
RANK, ALPHA = 4, 2.0


@pytest.fixture(scope="module")
def files(tiny_checkpoint: Path) -> CheckpointFiles:
    return open_checkpoint(tiny_checkpoint)


@pytest.fixture(scope="module")
def base(files: CheckpointFiles) -> Shapes:
    return {name: tuple(value.shape) for name, value in open_transformer(files).state_dict().items()}


def pair(base: Shapes, seed: int = 1, module: str = LINEAR) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows, *rest = base[f"{module}.weight"]
    columns = math.prod(rest)
    return torch.randn(RANK, columns, generator=generator), torch.randn(rows, RANK, generator=generator)


def peft(prefix: str) -> Callable[[Tensor, Tensor], dict[str, Tensor]]:
    return lambda down, up: {
        f"{prefix}{LINEAR}.lora_A.weight": down,
        f"{prefix}{LINEAR}.lora_B.weight": up,
        f"{prefix}{LINEAR}.alpha": torch.tensor(ALPHA),
    }


def kohya(down: Tensor, up: Tensor) -> dict[str, Tensor]:
    flat = f"lora_unet_{LINEAR.replace('.', '_')}"
    return {
        f"{flat}.lora_down.weight": down,
        f"{flat}.lora_up.weight": up,
        f"{flat}.alpha": torch.tensor(ALPHA),
    }


def comfy(down: Tensor, up: Tensor) -> dict[str, Tensor]:
    stem = f"diffusion_model.{LINEAR}"
    return {
        f"{stem}.lora_down.weight": down,
        f"{stem}.lora_up.weight": up,
        f"{stem}.alpha": torch.tensor(ALPHA),
    }


def diffsynth(down: Tensor, up: Tensor) -> dict[str, Tensor]:
    """It writes no alpha: the pair counts as it is."""
    stem = f"pipe.dit.{LINEAR}"
    scaled = up * (ALPHA / RANK)
    return {f"{stem}.lora_A.default.weight": down, f"{stem}.lora_B.default.weight": scaled}


def diffusers(down: Tensor, up: Tensor) -> dict[str, Tensor]:
    stem = "transformer.blocks.1.attn2.to_out.0"
    return {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up, f"{stem}.alpha": torch.tensor(ALPHA)}


FORMS = [peft("base_model.model."), peft(""), peft("model."), kohya, comfy, diffsynth, diffusers]
NAMES = ["peft", "bare", "model", "kohya", "comfyui", "diffsynth", "diffusers"]


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
def test_every_trainers_form_is_the_same_arithmetic(form, base: Shapes, tmp_path: Path) -> None:
    down, up = pair(base)
    path, weight = tmp_path / "mine.safetensors", torch.randn(base[WEIGHT])
    save_file(form(down, up), path)
    with open_user_lora(UserLora(path, 0.5), base) as lora:
        merged = lora.merge(WEIGHT, weight)
        assert lora.merge("blocks.0.ffn.0.weight", weight) is weight
    expected = weight.double() + 0.5 * ALPHA / RANK * (up.double() @ down.double())
    torch.testing.assert_close(merged.double(), expected, atol=1e-5, rtol=1e-5)


def test_pefts_config_beside_the_file_gives_alpha(base: Shapes, tmp_path: Path) -> None:
    down, up = pair(base)
    path, weight = tmp_path / "adapter_model.safetensors", torch.zeros(base[WEIGHT])
    save_file({f"{LINEAR}.lora_A.weight": down, f"{LINEAR}.lora_B.weight": up}, path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 8, "r": RANK}))
    with open_user_lora(UserLora(path), base) as lora:
        torch.testing.assert_close(lora.merge(WEIGHT, weight), 2 * up @ down)
    (tmp_path / "adapter_config.json").write_text("no json")
    with pytest.raises(BadInput, match=r"adapter_config\.json"), open_user_lora(UserLora(path), base):
        pass


def test_differences_and_convolutions_are_merged(base: Shapes, tmp_path: Path) -> None:
    path, conv = tmp_path / "mine.safetensors", "patch_embedding"
    down, up = pair(base, module=conv)
    shape = base[f"{conv}.weight"]
    change = torch.ones(base["head.head.bias"])
    tensors = {
        f"diffusion_model.{conv}.lora_down.weight": down.view(RANK, *shape[1:]),
        f"diffusion_model.{conv}.lora_up.weight": up.view(-1, RANK, 1, 1, 1),
        "diffusion_model.head.head.diff_b": change,
    }
    save_file(tensors, path)
    with open_user_lora(UserLora(path, 0.5), base) as lora:
        merged = lora.merge(f"{conv}.weight", torch.zeros(shape))
        torch.testing.assert_close(merged, (up @ down).view(shape) / 2)
        torch.testing.assert_close(lora.merge("head.head.bias", change), 1.5 * change)


def test_several_are_merged_after_the_official_one(
    files: CheckpointFiles, base: Shapes, tmp_path: Path
) -> None:
    down, up = pair(base)
    other_down, other_up = pair(base, seed=2)
    save_file(kohya(down, up), tmp_path / "a.safetensors")
    save_file(comfy(other_down, other_up), tmp_path / "b.safetensors")
    preset = load_preset("self-test").with_settings(
        lora=f"{tmp_path}/a.safetensors:2 ; {tmp_path}/b.safetensors:-0.5"
    )
    chosen = find_files(preset, files.shards[0].parents[1], tmp_path)
    plain = load_transformer(files, "cpu", torch.float32).state_dict()[WEIGHT]
    merged = load_transformer(chosen, "cpu", torch.float32).state_dict()[WEIGHT]
    scale = ALPHA / RANK
    expected = plain + 2 * scale * up @ down - 0.5 * scale * other_up @ other_down
    torch.testing.assert_close(merged, expected, atol=1e-4, rtol=1e-4)
    assert key(chosen, torch.bfloat16, FLOAT8) != key(files, torch.bfloat16, FLOAT8)


def test_another_weight_or_file_is_another_entry_and_print(
    files: CheckpointFiles, base: Shapes, tmp_path: Path
) -> None:
    path = tmp_path / "mine.safetensors"
    texts = [f"{path}:1", f"{path}:0.5", f"{path}:1;{path}:1"]
    save_file(kohya(*pair(base)), path)
    digests = [loras_digest(text) for text in texts]
    save_file(kohya(*pair(base, seed=3)), path)
    digests.append(loras_digest(texts[0]))
    assert len(set(digests)) == 4
    other = tmp_path / "renamed.safetensors"
    path.rename(other)
    assert loras_digest(str(other)) == digests[-1]


def stranger(tensors: dict[str, Tensor]) -> str:
    tensors["lora_unet_blocks_0_cross_attn_k_img.lora_down.weight"] = torch.zeros(RANK, 64)
    return "unexpected: lora_unet_blocks_0_cross_attn_k_img.weight (lora_A)"


def half(tensors: dict[str, Tensor]) -> str:
    del tensors[f"diffusion_model.{LINEAR}.lora_up.weight"]
    return f"missing: {WEIGHT} (lora_B)"


def narrow(tensors: dict[str, Tensor]) -> str:
    tensors[f"diffusion_model.{LINEAR}.lora_down.weight"] = torch.zeros(RANK, 32)
    return f"wrong shape: {WEIGHT} (lora_A) is 4×32 instead of 4×64"


def loha(tensors: dict[str, Tensor]) -> str:
    tensors[f"diffusion_model.{LINEAR}.hada_w1_a"] = torch.zeros(4, 4)
    return "LoHa"


def nothing(tensors: dict[str, Tensor]) -> str:
    tensors.clear()
    tensors["head.head.bias"] = torch.zeros(64)
    return "contains no LoRA"


@pytest.mark.parametrize("damage", [stranger, half, narrow, loha, nothing])
def test_what_matches_nothing_is_refused_before_loading(
    damage, base: Shapes, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    tensors = comfy(*pair(base))
    words = damage(tensors)
    save_file(tensors, tmp_path / "mine.safetensors")
    with pytest.raises(BadInput) as refused:
        check_loras(f"{tmp_path}/mine.safetensors", find_checkpoint(tiny_checkpoint))
    assert words in str(refused.value)
    assert "mine.safetensors" in str(refused.value)
    assert str(tmp_path) not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"\x10" * 8, b"text that is no LoRA at all", None])
def test_a_file_that_is_no_lora_is_refused(
    content: bytes | None, base: Shapes, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    path = tmp_path / "mine.safetensors"
    if content is None:  # cut short
        save_file(comfy(*pair(base)), path)
        content = path.read_bytes()[:-10]
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"mine\.safetensors is truncated or corrupt"):
        check_loras(str(path), find_checkpoint(tiny_checkpoint))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("absent.safetensors", "no LoRA 'absent.safetensors'"),
        ("/secret/place/absent.safetensors:1", "no LoRA 'absent.safetensors'"),
        ("known.safetensors:much", "weight of the LoRA 'known.safetensors' is 'much'"),
        ("known.safetensors:nan", "It must be a number"),
        ("known.safetensors:11", "from -10 to 10"),
    ],
)
def test_names_and_weights_are_checked(
    text: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "known.safetensors").write_bytes(b"")
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path))
    assert known_loras() == ["known.safetensors"]
    with pytest.raises(BadInput) as refused:
        parse_loras(text)
    assert words in str(refused.value)
    assert "secret" not in str(refused.value)


def test_visitors_name_files_of_the_folder_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, outside = tmp_path / "loras" / "a.safetensors", tmp_path / "b.safetensors"
    inside.parent.mkdir()
    for path in (inside, outside):
        path.write_bytes(b"")
    monkeypatch.setenv(ENVIRONMENT, str(inside.parent))
    monkeypatch.chdir(tmp_path)
    assert parse_loras("a.safetensors:0.5", named_only=True) == (UserLora(inside, 0.5),)
    assert parse_loras("b.safetensors") == (UserLora(Path("b.safetensors")),)
    for text in ("b.safetensors", str(outside), "../b.safetensors", str(inside)):
        with pytest.raises(BadInput, match="no LoRA"):
            parse_loras(text, named_only=True)
