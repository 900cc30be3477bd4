"""Where the model is found: replicas of every layout, with real names and shapes, and holes for data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from transformers import UMT5EncoderModel, Wav2Vec2Config, Wav2Vec2Model

from avatar.checkpoints.locations import (
    LORA_FILE,
    LORA_REPO,
    OFFICIAL,
    SHARD_INDEX,
    Checkpoint,
    find_checkpoint,
    hub_cache,
    remember,
    remembered,
)
from avatar.checkpoints.lora_files import check_loras
from avatar.checkpoints.lora_keys import read_changes, shapes_of
from avatar.checkpoints.model_sizes import ModelSizes
from avatar.checkpoints.tensor_headers import read_header
from avatar.checkpoints.tensor_match import mismatches
from avatar.checkpoints.tensor_names import file_shapes, transformer_shapes
from avatar.checkpoints.transformer_config import FIXED, ModelConfig
from avatar.model.transformer import StreamingTransformer
from tests.fixtures.single_files import XXL, write_hole

COMMIT = "92cdccd12a91e8a63767a7c821b7c75e51d5a172"
BASE_COMMIT = "dab4e9c55bbe4c8c4d03db1c2c98c7f0ac9c454b"
Table = dict[str, tuple[str, tuple[int, ...]]]
pytestmark = pytest.mark.usefixtures("no_weights_elsewhere")


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def table(model: torch.nn.Module, dtype: str) -> Table:
    return {name: (dtype, tuple(value.shape)) for name, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def transformer() -> Table:
    with torch.device("meta"):
        return table(StreamingTransformer(ModelConfig()), "BF16")


def speech() -> Table:
    config = Wav2Vec2Config(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        conv_bias=True,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
    )
    with torch.device("meta"):
        tensors = table(Wav2Vec2Model(config), "F32")
    return {f"wav2vec2.{name}": reported for name, reported in tensors.items()} | {
        "lm_head.weight": ("F32", (33, 1024)),
        "lm_head.bias": ("F32", (33,)),
    }


def text() -> Table:
    with torch.device("meta"):
        tensors = table(UMT5EncoderModel(XXL), "F8_E4M3")
    del tensors["encoder.embed_tokens.weight"]
    return tensors | {"scaled_fp8": ("F8_E4M3", (2,)), "spiece_model": ("U8", (4548313,))}


def lora(transformer: Table) -> Table:
    tensors: Table = {}
    for name, (_, shape) in transformer.items():
        module = name.removesuffix(".weight")
        ends = (".q", ".k", ".v", ".o", ".ffn.0", ".ffn.2")
        if len(shape) == 2 and module != name and module.endswith(ends):
            tensors[f"{module}.lora_A.default.weight"] = ("BF16", (128, shape[1]))
            tensors[f"{module}.lora_B.default.weight"] = ("BF16", (shape[0], 128))
    return tensors


def write_official(base: Path, transformer: Table) -> None:
    names = list(transformer)
    files = [f"diffusion_pytorch_model-0000{number}-of-00004.safetensors" for number in range(1, 5)]
    for number, file in enumerate(files):
        write_hole(base / file, {name: transformer[name] for name in names[number::4]})
    where = {name: files[index % 4] for index, name in enumerate(names)}
    (base / SHARD_INDEX).write_text(json.dumps({"weight_map": where}))
    config = {key: value for key, value in FIXED.items() if key != "patch_size"} | vars(ModelConfig())
    (base / "config.json").write_text(json.dumps(config))
    for name in OFFICIAL.others:
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        if not (base / name).exists():
            (base / name).write_bytes(b"{}")
    write_hole(base / OFFICIAL.speech_weights[0], speech())


def write_lora(folder: Path, transformer: Table) -> None:
    write_hole(folder / LORA_FILE, lora(transformer))


def write_comfyui(models: Path, transformer: Table) -> None:
    float8 = {
        name: ("F8_E4M3", shape) if len(shape) == 2 else ("F16", shape)
        for name, (_, shape) in transformer.items()
    }
    float8 |= {
        f"{name.removesuffix('.weight')}.scale_weight": ("F32", (1,))
        for name, (_, shape) in transformer.items()
        if len(shape) == 2 and name.endswith(".weight")
    }
    write_hole(
        models / "diffusion_models/wan2.2_s2v_14B_fp8_scaled.safetensors",
        float8 | {"scaled_fp8": ("F8_E4M3", (2,))},
    )
    write_hole(models / "text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors", text())
    with torch.device("meta"):
        vae = table(AutoencoderKLWan(), "BF16")
    reported: Table = {
        "conv2.weight": ("BF16", (16, 16, 1, 1, 1)),
        "decoder.middle.0.residual.0.gamma": ("BF16", (384, 1, 1, 1)),
        "encoder.downsamples.0.residual.0.gamma": ("BF16", (96, 1, 1, 1)),
    }
    assert len(vae) == 194
    write_hole(models / "vae/wan_2.1_vae.safetensors", reported)
    named = {
        name.removeprefix("wav2vec2."): reported
        for name, reported in speech().items()
        if "lm_head" not in name
    }
    del named["masked_spec_embed"]
    write_hole(models / "audio_encoders/wav2vec2_large_english_fp16.safetensors", named)


def test_the_official_replica_is_whole_and_takes_no_room(transformer: Table, tmp_path: Path) -> None:
    base = tmp_path / "Wan2.2-S2V-14B"
    base.mkdir()
    write_official(base, transformer)
    write_lora(tmp_path / "LiveAvatar", transformer)
    found = find_checkpoint(tmp_path)
    assert found.complete, found.missing
    files = [*base.rglob("*.safetensors"), tmp_path / "LiveAvatar" / LORA_FILE]
    assert sum(file.stat().st_size for file in files) > 33e9
    assert sum(file.stat().st_blocks * 512 for file in files) < 4e6
    shapes = transformer_shapes(found.shards)
    assert len(shapes) == 1260
    sizes = ModelSizes.of(found)
    assert sizes == ModelSizes.published()
    adapter = read_header(tmp_path / "LiveAvatar" / LORA_FILE).shapes
    changes, fault = read_changes(adapter, shapes)
    assert (len(adapter), len(changes), fault) == (896, 448, "")
    assert mismatches(*shapes_of(changes, adapter, shapes)) == ""


def test_comfyuis_replica_is_whole(transformer: Table, tmp_path: Path) -> None:
    write_comfyui(tmp_path / "ComfyUI" / "models", transformer)
    write_lora(tmp_path / "ComfyUI" / "models" / "loras", transformer)
    found = find_checkpoint(tmp_path / "ComfyUI")
    assert found.complete, found.missing
    assert found.config is not None
    assert ModelConfig.load(found.config) == ModelConfig()
    assert ModelSizes.of(found) == ModelSizes.published()
    assert found.tokenizer == found.parts["text_encoder"]
    assert len(file_shapes(found.shards[0])) == 1260


def in_ckpt(root: Path, transformer: Table) -> Path | None:
    """As the public code keeps both."""
    base = Path("ckpt") / "Wan2.2-S2V-14B"
    base.mkdir(parents=True)
    write_official(base, transformer)
    cache = Path("ckpt") / "LiveAvatar" / f"models--{LORA_REPO.replace('/', '--')}" / "snapshots" / COMMIT
    write_lora(cache, transformer)
    return None


def in_the_hubs_cache(root: Path, transformer: Table) -> Path | None:
    places = [
        hub_cache() / f"models--{repo.replace('/', '--')}" / "snapshots" / commit
        for repo, commit in ((OFFICIAL.repo, BASE_COMMIT), (LORA_REPO, COMMIT))
    ]
    places[0].mkdir(parents=True)
    write_official(places[0], transformer)
    write_lora(places[1], transformer)
    return None


def in_a_remembered_folder(root: Path, transformer: Table) -> Path | None:
    (root / "far" / "Wan2.2-S2V-14B").mkdir(parents=True)
    write_official(root / "far" / "Wan2.2-S2V-14B", transformer)
    write_lora(root / "far", transformer)
    remember(root / "far")
    assert remembered() == (root / "far").resolve()
    return None


def in_several_places(root: Path, transformer: Table) -> Path | None:
    """The transformer is ComfyUI's, all else lies in the hub's cache."""
    in_the_hubs_cache(root, transformer)
    write_comfyui(root / "models", transformer)
    for file in (root / "models").rglob("*.safetensors"):
        if "s2v" not in file.name:
            file.unlink()
    return root / "models"


@pytest.mark.parametrize("write", [in_ckpt, in_the_hubs_cache, in_a_remembered_folder, in_several_places])
def test_the_model_is_found_where_it_lies(
    write: Callable[[Path, Table], Path | None], transformer: Table, tmp_path: Path
) -> None:
    assert not find_checkpoint().complete
    named = write(tmp_path, transformer)
    found = find_checkpoint(named)
    assert found.complete, found.missing
    if named is not None:
        assert found.parts["transformer"].name == "wan2.2_s2v_14B_fp8_scaled.safetensors"
        assert found.parts["vae"].name == OFFICIAL.vae
        assert find_checkpoint().parts["transformer"].is_dir()


def test_a_speech_encoder_without_weights_is_incomplete(transformer: Table, tmp_path: Path) -> None:
    base = tmp_path / "Wan2.2-S2V-14B"
    base.mkdir()
    write_official(base, transformer)
    write_lora(tmp_path, transformer)
    (base / OFFICIAL.speech_weights[0]).unlink()
    found = find_checkpoint(tmp_path)
    assert not found.complete
    assert found.missing == (OFFICIAL.speech_weights[0],)
    (base / OFFICIAL.speech_weights[1]).write_bytes(b"pickled")  # the older form serves, too
    assert find_checkpoint(tmp_path).complete


def test_a_shard_that_is_absent_is_named(transformer: Table, tmp_path: Path) -> None:
    base = tmp_path / "Wan2.2-S2V-14B"
    base.mkdir()
    write_official(base, transformer)
    shard = next(base.glob("*-00003-*"))
    shard.unlink()
    assert find_checkpoint(tmp_path).missing == (shard.name, f"{LORA_REPO}/{LORA_FILE}")


def test_files_of_other_models_are_no_parts(transformer: Table, tmp_path: Path) -> None:
    """A Wan that hears nothing, Wan 2.2's other VAE, T5 of another kind, and what is no tensor file."""
    others = {name: reported for name, reported in transformer.items() if "audio" not in name}
    write_hole(tmp_path / "diffusion_models/wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors", others)
    write_hole(tmp_path / "vae/wan2.2_vae.safetensors", {
        "conv2.weight": ("BF16", (48, 48, 1, 1, 1)),
        "decoder.middle.0.residual.0.gamma": ("BF16", (1024, 1, 1, 1)),
        "encoder.downsamples.0.residual.0.gamma": ("BF16", (160, 1, 1, 1)),
    })  # fmt: skip
    t5 = {
        name: reported for name, reported in text().items() if "relative" not in name or ".block.0." in name
    }
    write_hole(tmp_path / "text_encoders/t5xxl_fp8_e4m3fn_scaled.safetensors", t5)
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "broken.gguf").write_bytes(b"GGUF\x03")
    found = find_checkpoint(tmp_path)
    assert found.parts == {}
    assert found.missing[0] == OFFICIAL.repo


def test_loras_of_other_trainers_fit_the_published_model(transformer: Table, tmp_path: Path) -> None:
    write_comfyui(tmp_path / "models", transformer)
    write_lora(tmp_path, transformer)
    found = find_checkpoint(tmp_path)
    assert found.complete
    for prefix in ("pipe.dit.", "model.", "diffusion_model.", "base_model.model."):
        renamed = {f"{prefix}{name}": reported for name, reported in lora(transformer).items()}
        write_hole(tmp_path / "mine.safetensors", renamed)
        check_loras(str(tmp_path / "mine.safetensors"), found)


def test_a_checkpoint_given_by_its_base_alone_has_its_layouts_places() -> None:
    base = Path("somewhere")
    assert Checkpoint(base=base, complete=True).tokenizer == base / OFFICIAL.tokenizer


@pytest.mark.parametrize(
    ("place", "given"),
    [
        ("weights/taew2_1.pth", "weights"),
        ("weights/TinyDecoder/taew2_1.pth", "weights"),
        ("weights/Autoencoders/lighttaew2_1.safetensors", "weights"),
        ("ComfyUI/models/vae_approx/taew2_1.safetensors", "ComfyUI"),
        ("ComfyUI/models/vae_approx/taew2_1.safetensors", "ComfyUI/models/vae/wan_2.1_vae.safetensors"),
        ("weights/TinyDecoder/taew2_1.pth", "weights/Wan2.2-S2V-14B"),
        ("no-cache/live-avatar/TinyDecoder/taew2_1.pth", None),
        ("no-hub/models--lightx2v--Autoencoders/snapshots/02cb/lighttaew2_1.pth", None),
        ("no-hub/models--Kijai--WanVideo_comfy/snapshots/abcd/taew2_1.safetensors", None),
    ],
)
def test_the_tiny_decoder_is_found_by_its_name(
    place: str, given: str | None, tmp_path: Path, no_weights_elsewhere: None
) -> None:
    named = None if given is None else tmp_path / given
    if named is not None and named.suffix:
        named.parent.mkdir(parents=True)
        named.write_bytes(b"one part")
    elif named is not None:
        named.mkdir(parents=True)
    assert find_checkpoint(named).tiny_decoder is None
    file = tmp_path / place
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"whatever it holds")
    found = find_checkpoint(named)
    assert found.tiny_decoder == file
    assert not found.complete, "it is no part of the model"
    if given == "weights":
        (tmp_path / given / "taew2_1.pth").write_bytes(b"TAEHV's")
        assert find_checkpoint(named).tiny_decoder == tmp_path / given / "taew2_1.pth"
