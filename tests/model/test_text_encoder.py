"""The prompt encoder read block by block from every kind of file: the same bits, in a block's memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from functools import cache
from pathlib import Path

import gguf
import pytest
import torch
from transformers import UMT5EncoderModel

from avatar.checkpoints.locations import OFFICIAL
from avatar.hardware.inventory import Inventory
from avatar.model.text_encoder import TextEncoder, TextWeights
from avatar.pipeline.conditioning import LocalTextEncoder
from avatar.pipeline.device import DTYPES
from avatar.planning.estimates import TEXT_WORKSPACE_BYTES
from avatar.planning.planner import plan
from avatar.preset import load_preset
from tests.fixtures.live_bytes import Live
from tests.fixtures.single_files import (
    XXL,
    build_official,
    llama_name,
    write_comfyui,
    write_gguf,
    write_gguf_hole,
    write_hole,
)

KINDS = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]
FILES = [*KINDS, "fp8", "pth"]
IDS = torch.tensor([[5, 9, 200, 383, 12, 1]])


@pytest.fixture(scope="module")
def text_files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """From a kind of file to a tiny prompt encoder in it, and the official file of the same values."""

    @cache
    def made(kind: str) -> tuple[Path, Path]:
        folder = tmp_path_factory.mktemp(kind)
        official = build_official(folder / "official")
        if kind in KINDS:
            write_gguf(official, folder, gguf.GGMLQuantizationType[kind])
        if kind == "fp8":
            write_comfyui(official, folder)
        (file,) = {"fp8": folder.glob("text_encoders/*"), "pth": [official / OFFICIAL.text_encoder]}.get(
            kind, folder.glob("umt5*.gguf")
        )
        return file, official / OFFICIAL.text_encoder

    return made


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("kind", FILES)
def test_blocks_read_one_by_one_give_the_same_bits(kind: str, dtype: torch.dtype, text_files) -> None:
    file, official = text_files(kind)
    ours = LocalTextEncoder(file, torch.device("cpu"), dtype)
    whole = TextEncoder.load(official, "cpu", dtype)
    for ids in (IDS, IDS[:, 2:]):
        expected = whole.encode(ids)
        assert expected.std() > 0.1
        assert ours(ids).dtype == expected.dtype == dtype
        assert torch.equal(ours(ids), expected)


@pytest.mark.parametrize("kind", ["Q4_0", "fp8", "pth"])
def test_one_block_at_a_time_is_in_memory(kind: str, text_files) -> None:
    file, _ = text_files(kind)
    encoder = TextWeights.open(file).streamed("cpu", torch.bfloat16)
    blocks = encoder.model.encoder.block
    here, read = [], []

    def note(block: torch.nn.Module, *_: object) -> None:
        here.append([is_here(other) for other in blocks])
        read.append(weakref.ref(block.layer[0].SelfAttention.q.weight.untyped_storage()))

    for block in blocks:
        block.layer[0].register_forward_hook(lambda *_, block=block: note(block))
    encoder.encode(IDS)
    assert here == [[True, False], [False, True]]
    assert not any(map(is_here, blocks))
    if kind != "pth":  # its tensors are the file's own pages
        gc.collect()
        assert [storage() for storage in read] == [None, None]


def is_here(module: torch.nn.Module) -> bool:
    found = {parameter.is_meta for parameter in module.parameters()}
    assert len(found) == 1
    return found == {False}


def full_sized(kind: str, folder: Path) -> Path:
    """A prompt encoder of the published size without values."""
    with torch.device("meta"):
        shapes = {
            name: tuple(value.shape)
            for name, value in UMT5EncoderModel(XXL).state_dict().items()
            if name != "encoder.embed_tokens.weight"
        }
    if kind == "fp8":
        tensors = {name: ("F8_E4M3" if len(s) == 2 else "F32", s) for name, s in shapes.items()}
        scales = {
            f"{name.removesuffix('.weight')}.scale_weight": ("F32", (1,))
            for name, shape in shapes.items()
            if len(shape) == 2
        }
        write_hole(folder / "umt5.safetensors", tensors | scales)
        return folder / "umt5.safetensors"
    named = {llama_name(name): shape for name, shape in shapes.items()}
    write_gguf_hole(folder / "umt5.gguf", named, gguf.GGMLQuantizationType[kind])
    return folder / "umt5.gguf"


@pytest.mark.parametrize(
    ("kind", "dtype"), [("Q4_0", "bf16"), ("Q8_0", "bf16"), ("Q8_0", "fp32"), ("fp8", "bf16")]
)
def test_a_block_takes_what_the_plan_counts(kind: str, dtype: str, tmp_path: Path) -> None:
    """At full size, with the longest prompt, on a device that keeps no numbers."""
    preset = load_preset("80gb").with_settings(weight_dtype=dtype)
    items = {item.name: item for item in plan(preset, Inventory.imagine(1, 139)).gpus[0].items}
    planned = items["text_encoder_block"].num_bytes
    encoder = TextWeights.open(full_sized(kind, tmp_path)).streamed("meta", DTYPES[dtype])
    with Live() as live:
        encoder.encode(torch.ones(1, 512, dtype=torch.long))
    assert planned - TEXT_WORKSPACE_BYTES < live.peak_bytes < planned
