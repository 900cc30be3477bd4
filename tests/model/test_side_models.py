"""VAE and text encoder against the public code's numbers; both layouts; damaged and foreign files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from avatar.checkpoints.prompt_tokens import MAX_TOKENS, clean_prompt
from avatar.errors import BadInput, WeightsMissing
from avatar.model.text_encoder import PromptTokenizer, TextEncoder, transformers_name
from avatar.model.vae.vae import VideoVAE
from avatar.model.weights.checkpoint import open_checkpoint
from avatar.model.weights.tensor_files import read_pth

GOLDEN = Path(__file__).parents[1] / "golden"
VAE_FILE = GOLDEN / "Wan2.1_VAE.tiny.pth"
TEXT_FILE = GOLDEN / "models_t5_umt5.tiny.pth"
CPU = {"device": "cpu", "dtype": torch.float32}


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.float() - theirs).norm() / theirs.norm())


def test_the_vae_encodes_as_the_public_code() -> None:
    golden, vae = load_file(GOLDEN / "vae.safetensors"), VideoVAE.load(VAE_FILE, **CPU)
    assert relative(vae.encode(golden["video"]), golden["video_latent"]) < 1e-5
    five = vae.encode(golden["image"].expand(-1, -1, 5, -1, -1))
    assert relative(five, golden["image_latent_5frames"]) < 1e-5


def test_the_vae_in_bfloat16_stays_within_its_precision() -> None:
    """bfloat16 keeps 8 bits, so each of some 40 layers adds about 2^-9, of random sign: √40 of them."""
    golden, vae = load_file(GOLDEN / "vae.safetensors"), VideoVAE.load(VAE_FILE, "cpu", torch.bfloat16)
    assert 1e-4 < relative(vae.encode(golden["video"]), golden["video_latent"]) < 40**0.5 * 2**-9 * 2


def test_the_vae_is_the_same_from_either_layout(
    tiny_checkpoint: Path, tiny_diffusers_checkpoint: Path
) -> None:
    video = torch.rand(1, 3, 5, 32, 48) * 2 - 1
    ours, theirs = (
        VideoVAE.load(open_checkpoint(folder).vae, **CPU)
        for folder in (tiny_checkpoint, tiny_diffusers_checkpoint)
    )
    assert torch.equal(ours.encode(video), theirs.encode(video))


def test_the_text_encoder_is_the_public_codes() -> None:
    """Each prompt alone, without padding, gives what the public code computes with padding and a mask."""
    golden, encoder = load_file(GOLDEN / "t5.safetensors"), TextEncoder.load(TEXT_FILE, **CPU)
    for ids, mask, hidden in zip(
        golden["input_ids"], golden["attention_mask"], golden["hidden"], strict=True
    ):
        length = int(mask.sum())
        assert relative(encoder.encode(ids[None, :length]), hidden[:length]) < 1e-5


def test_the_text_encoder_in_bfloat16_stays_within_its_precision() -> None:
    """T5 does not scale attention's logits: here they reach 30, and rounding at 2^-9 moves weights by 6 %."""
    golden, encoder = load_file(GOLDEN / "t5.safetensors"), TextEncoder.load(TEXT_FILE, "cpu", torch.bfloat16)
    hidden = encoder.encode(golden["input_ids"][1:])
    assert hidden.dtype == torch.bfloat16
    assert 1e-4 < relative(hidden, golden["hidden"][1]) < 2 * 30 * 2**-9


def test_the_text_encoder_is_the_same_from_either_layout(
    tiny_checkpoint: Path, tiny_diffusers_checkpoint: Path
) -> None:
    files = [open_checkpoint(folder) for folder in (tiny_checkpoint, tiny_diffusers_checkpoint)]
    ids = [PromptTokenizer(part.tokenizer)("A woman speaks.") for part in files]
    ours, theirs = (
        TextEncoder.load(part.text_encoder, **CPU).encode(tokens)
        for part, tokens in zip(files, ids, strict=True)
    )
    assert torch.equal(ours, theirs)


def test_the_shared_embedding_is_held_once(tiny_checkpoint: Path) -> None:
    model = TextEncoder.load(open_checkpoint(tiny_checkpoint).text_encoder, **CPU).model
    assert model.shared is model.encoder.embed_tokens
    assert not any(parameter.is_meta for parameter in model.parameters())


def test_names_are_translated() -> None:
    assert transformers_name("blocks.23.attn.v.weight") == "encoder.block.23.layer.0.SelfAttention.v.weight"
    assert (
        transformers_name("blocks.3.ffn.gate.0.weight")
        == "encoder.block.3.layer.1.DenseReluDense.wi_0.weight"
    )
    assert transformers_name("head.weight") == "head.weight"


@pytest.mark.parametrize(
    ("prompt", "clean"),
    [
        ("  a \n\t b  ", "a b"),
        ("fish &amp;amp; chips", "fish & chips"),
        ("“curly” cafÃ©", '"curly" café'),
        ("", ""),
    ],
)
def test_prompts_are_cleaned(prompt: str, clean: str) -> None:
    assert clean_prompt(prompt) == clean


def test_a_prompt_ends_with_the_end_mark(tiny_checkpoint: Path) -> None:
    tokenizer = PromptTokenizer(open_checkpoint(tiny_checkpoint).tokenizer)
    assert tokenizer("hi")[0, -1] == 1
    assert tokenizer("").tolist() == [[1]]


def test_the_longest_prompt_passes_and_one_token_more_is_refused(tiny_checkpoint: Path) -> None:
    tokenizer = PromptTokenizer(open_checkpoint(tiny_checkpoint).tokenizer)
    fixed = tokenizer("").shape[1] + tokenizer("x").shape[1] - 2  # the end mark and the word's opening
    assert tokenizer("x" * (MAX_TOKENS - fixed)).shape == (1, MAX_TOKENS)
    with pytest.raises(BadInput, match=f"{MAX_TOKENS + 1} tokens"):
        tokenizer("x" * (MAX_TOKENS - fixed + 1))


def drop(tensors: dict[str, Tensor]) -> None:
    del tensors[sorted(tensors)[5]]


def add(tensors: dict[str, Tensor]) -> None:
    tensors["stranger.weight"] = torch.zeros(1)


@pytest.mark.parametrize(("load", "source"), [(VideoVAE.load, VAE_FILE), (TextEncoder.load, TEXT_FILE)])
@pytest.mark.parametrize(("damage", "word"), [(drop, "missing"), (add, "unexpected: stranger.weight")])
def test_a_pth_file_with_other_tensors_is_refused(load, source, damage, word, tmp_path: Path) -> None:
    tensors = torch.load(source, weights_only=True)
    damage(tensors)
    torch.save(tensors, tmp_path / "model.pth")
    with pytest.raises(WeightsMissing, match=word) as refused:
        load(tmp_path / "model.pth", **CPU)
    assert str(tmp_path) not in str(refused.value)


@pytest.mark.parametrize(("load", "source"), [(VideoVAE.load, TEXT_FILE), (TextEncoder.load, VAE_FILE)])
def test_another_models_pth_file_is_refused(load, source) -> None:
    with pytest.raises(WeightsMissing, match="it lacks"):
        load(source, **CPU)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
@pytest.mark.parametrize(("load", "source"), [(VideoVAE.load, VAE_FILE), (TextEncoder.load, TEXT_FILE)])
def test_a_truncated_pth_file_is_refused(load, source, share: float, tmp_path: Path) -> None:
    data = source.read_bytes()
    (tmp_path / "model.pth").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(WeightsMissing, match=r"model\.pth") as refused:
        load(tmp_path / "model.pth", **CPU)
    assert str(tmp_path) not in str(refused.value)


class Command:
    """What a hostile .pth file may carry: a call that unpickling would make."""

    def __reduce__(self) -> tuple:
        return (open, ("/tmp/never-written", "w"))


def test_a_pth_file_that_carries_code_is_refused(tmp_path: Path) -> None:
    torch.save({"encoder.conv1.weight": Command()}, tmp_path / "model.pth")
    with pytest.raises(WeightsMissing, match="more than tensors"):
        VideoVAE.load(tmp_path / "model.pth", **CPU)


def test_a_pth_file_of_something_else_is_refused(tmp_path: Path) -> None:
    torch.save([torch.zeros(2)], tmp_path / "model.pth")
    with pytest.raises(WeightsMissing, match="not a table"):
        VideoVAE.load(tmp_path / "model.pth", **CPU)


@pytest.mark.parametrize("content", [None, "{", '{"version": "9"}'])
def test_a_bad_tokenizer_is_refused(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(WeightsMissing, match=r"tokenizer\.json"):
        PromptTokenizer(tmp_path)


@pytest.mark.parametrize("part", ["vae", "text_encoder"])
@pytest.mark.parametrize("config", ["", "[]", '{"z_dim": "wide", "d_model": "wide", "dim_mult": 3}'])
def test_a_bad_config_is_refused(
    part: str, config: str, tiny_diffusers_checkpoint: Path, tmp_path: Path
) -> None:
    source = getattr(open_checkpoint(tiny_diffusers_checkpoint), part)
    shutil.copytree(source, tmp_path / part)
    (tmp_path / part / "config.json").write_text(config)
    load = VideoVAE.load if part == "vae" else TextEncoder.load
    with pytest.raises(WeightsMissing, match=f"{part}/config.json") as refused:
        load(tmp_path / part, **CPU)
    assert str(tmp_path) not in str(refused.value)


def test_a_pth_file_in_the_older_format_is_read(tmp_path: Path) -> None:
    tensors = torch.load(VAE_FILE, weights_only=True)
    torch.save(tensors, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert VideoVAE.load(tmp_path / "old.pth", **CPU).model.config["base_dim"] == 8


@pytest.mark.parametrize(
    "content",
    [
        b"hello there, this is text\n",
        b"ascii words of a readme: I0 am S here",
        b"(.",
        b"G",
        b"",
        b"<!DOCTYPE html><html>404</html>",
        b"version https://git-lfs.github.com/spec/v1\n",
    ],
)
def test_a_file_that_holds_no_tensors_is_named(tmp_path: Path, content: bytes) -> None:
    """Some texts are the beginning of a pickle, which may then fail in any way."""
    (tmp_path / "vae.pth").write_bytes(content)
    with pytest.raises(WeightsMissing, match=r"^vae\.pth is truncated, corrupt") as caught:
        read_pth(tmp_path / "vae.pth")
    assert str(tmp_path) not in str(caught.value)
    assert "()" not in caught.value.message
