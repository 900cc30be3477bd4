"""Layers kept on the host as GGUF blocks: the same bits and video as dequantised ones, in less memory."""

from __future__ import annotations

import gc
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from avatar.checkpoints.block_sizes import block_sizes
from avatar.checkpoints.locations import OFFICIAL
from avatar.checkpoints.lora_files import UserLora
from avatar.checkpoints.lora_keys import Change
from avatar.errors import Cancelled
from avatar.model.quantize import FLOAT8, INT8, quantise_weight
from avatar.model.weights import lora
from avatar.model.weights.checkpoint import CheckpointFiles, open_checkpoint
from avatar.model.weights.gguf import BLOCKS, WIDEN, StoredBlocks
from avatar.model.weights.loading import go_on, load_transformer
from avatar.model.weights.lora import Lora
from avatar.pipeline.components import Components
from avatar.pipeline.device import best_device
from avatar.pipeline.model_loading import CheckpointModels
from avatar.pipeline.offload.block_layers import BlockLayers, StoredTensor
from avatar.pipeline.pipeline import DiffusionPipeline
from avatar.pipeline.side_models import SideModels
from avatar.planning.estimates import GGUF_WORKSPACE_BYTES
from avatar.planning.placement import Placement
from avatar.preset import load_preset
from tests.fixtures.live_bytes import Live
from tests.fixtures.single_files import SIZES, build_official, write_gguf
from tests.pipeline.test_single_files import beside_the_lora, video_of

PRESET = load_preset("self-test")
KINDS = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]
DTYPES = ["bf16", "fp8", "int8", "fp32"]
ALL = Placement(layers_on_host=SIZES.num_layers, layers_in_blocks=True)


def owned(folder: Path, kind: str) -> Path:
    """A folder of GGUF files: transformer and prompt encoder in blocks, the rest official."""
    official = build_official(folder / "official")
    mine = beside_the_lora(official, folder / kind)
    write_gguf(official, mine, gguf.GGMLQuantizationType[kind])
    rest = mine / "Wan2.2-S2V-14B"
    rest.mkdir()
    shutil.copy(official / OFFICIAL.vae, rest / OFFICIAL.vae)
    shutil.copytree(official / OFFICIAL.speech_encoder, rest / OFFICIAL.speech_encoder)
    return mine


@pytest.fixture(scope="module")
def by_kind(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each type of blocks. Read only."""
    folder = tmp_path_factory.mktemp("owned")
    return {kind: owned(folder / f"of {kind}", kind) for kind in KINDS}


@pytest.fixture(scope="module")
def sides(by_kind: dict[str, Path]) -> SideModels:
    """They have no part in a transformer's layers, so one set serves all."""
    return SideModels.load(PRESET.memory, files_of(by_kind["Q4_0"]), go_on, ALL, None, best_device())


def files_of(folder: Path) -> CheckpointFiles:
    files = open_checkpoint(folder)
    assert files.shards[0].suffix == ".gguf"
    return files


def with_loras(files: CheckpointFiles, folder: Path) -> CheckpointFiles:
    """Two more of the user's: a pair with an alpha of its own, a difference, a whole tensor, a bias."""
    generator = torch.Generator().manual_seed(2)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.1

    width, wide = SIZES.dim, SIZES.ffn_dim
    first = {
        "diffusion_model.blocks.1.self_attn.k.lora_down.weight": random(4, width),
        "diffusion_model.blocks.1.self_attn.k.lora_up.weight": random(width, 4),
        "diffusion_model.blocks.1.self_attn.k.alpha": torch.tensor(2.0),
        "diffusion_model.blocks.2.ffn.0.diff": random(wide, width),
        "diffusion_model.blocks.2.ffn.0.diff_b": random(wide),
    }
    second = {
        "blocks.0.cross_attn.o.weight": random(width, width).bfloat16(),
        "blocks.3.ffn.2.diff": random(width, wide),
    }
    for name, tensors in (("first", first), ("second", second)):
        save_file(tensors, folder / f"{name}.safetensors")
    return replace(
        files, loras=(UserLora(folder / "first.safetensors", 0.7), UserLora(folder / "second.safetensors"))
    )


def tensors_of(parts) -> dict[str, Tensor]:
    return {
        f"{part} {name}": value
        for part, module in parts._asdict().items()
        if module is not None
        for name, value in module.state_dict().items()
    }


def assert_same_layers(files: CheckpointFiles, weight_dtype: str, sides: SideModels) -> None:
    """Every tensor of every layer and injection, bit by bit and in the same dtype."""
    memory = PRESET.with_settings(weight_dtype=weight_dtype).memory
    near = Components.load(memory, files, kept=sides)
    far = Components.load(memory, files, placement=ALL, kept=sides)
    model = near.load_transformer()
    far.load_transformer()
    assert isinstance(far.host_layers, BlockLayers)
    for index in range(SIZES.num_layers):
        expected = tensors_of(model.layer_parts(index))
        with far.host_layers.visit(index) as parts:
            ours = {name: value.clone() for name, value in tensors_of(parts).items()}
        assert ours.keys() == expected.keys()
        for name, value in expected.items():
            assert ours[name].dtype == value.dtype, (index, name)
            assert torch.equal(ours[name].view(torch.uint8), value.view(torch.uint8)), (index, name)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_dequantised_as_at_loading(kind: str, by_kind: dict[str, Path], sides: SideModels) -> None:
    for weight_dtype in DTYPES:
        assert_same_layers(files_of(by_kind[kind]), weight_dtype, sides)


@pytest.mark.parametrize("weight_dtype", DTYPES)
def test_loras_are_merged_as_at_loading(
    weight_dtype: str,
    by_kind: dict[str, Path],
    sides: SideModels,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And in pieces: the rows of a tensor are many more than are merged at a time."""
    monkeypatch.setattr(lora, "PIECE_VALUES", 40 * SIZES.dim)
    files = with_loras(files_of(by_kind["Q4_0"]), tmp_path)
    assert_same_layers(files, weight_dtype, sides)
    with_them, without = (
        load_transformer(found, "cpu", torch.float32).state_dict()
        for found in (files, replace(files, loras=()))
    )
    changed = {name for name, value in with_them.items() if not torch.equal(value, without[name])}
    assert changed == {
        "blocks.1.self_attn.k.weight",
        "blocks.2.ffn.0.weight",
        "blocks.2.ffn.0.bias",
        "blocks.0.cross_attn.o.weight",
        "blocks.3.ffn.2.weight",
    }


@pytest.mark.parametrize("weight_dtype", ["bf16", "fp8", "int8"])
def test_the_video_is_the_same(weight_dtype: str, by_kind: dict[str, Path], tmp_path: Path) -> None:
    folder = by_kind["Q4_0"]
    preset = PRESET.with_settings(weight_dtype=weight_dtype)
    models = CheckpointModels(preset, folder)
    models.placement = replace(ALL, layers_on_host=3, rings_on_host=True, diagonal=True)
    source = DiffusionPipeline(preset, folder, models=models)
    ours = video_of(folder, tmp_path, "ours", preset, source)
    expected = video_of(folder, tmp_path, "expected", preset)
    assert expected.std() > 5
    assert (ours == expected).all()


def test_only_blocks_are_kept_and_only_blocks_cross_the_bus(
    by_kind: dict[str, Path], sides: SideModels
) -> None:
    files = files_of(by_kind["Q4_0"])
    parts = Components.load(PRESET.memory, files, placement=replace(ALL, layers_on_host=2), kept=sides)
    model = parts.load_transformer()
    layers = parts.host_layers
    assert isinstance(layers, BlockLayers)
    assert layers.buffers.keys() == {0, 2}
    planned = block_sizes(SIZES, files.shards[0], [files.lora])
    counted = {index: planned.layers[index] for index in (0, 2)}
    for index, buffer in layers.buffers.items():
        assert counted[index] <= buffer.nbytes < 1.2 * counted[index]  # each tensor is aligned
        with layers.visit(index):
            pass
    assert layers.traffic.to_device_bytes == sum(counted.values())
    places = {index: {v.device.type for v in model.layer(index).state_dict().values()} for index in range(5)}
    assert places == {0: {"meta"}, 1: {"cpu"}, 2: {"meta"}, 3: {"cpu"}, 4: {"cpu"}}


def test_reading_the_blocks_may_be_stopped(by_kind: dict[str, Path], sides: SideModels) -> None:
    parts = Components.load(PRESET.memory, files_of(by_kind["Q4_0"]), placement=ALL, kept=sides)
    asked: list[int] = []

    def stop_at(last: int) -> None:
        asked.append(last)
        if len(asked) == last:
            raise Cancelled("The run was stopped.")

    parts.load_transformer(lambda: stop_at(0))
    num_checks = len(asked)
    parts.release_transformer()
    asked.clear()
    with pytest.raises(Cancelled):
        parts.load_transformer(lambda: stop_at(num_checks))  # the last layer's
    assert parts.transformer is None


def test_releasing_the_transformer_frees_the_blocks(by_kind: dict[str, Path], sides: SideModels) -> None:
    parts = Components.load(PRESET.memory, files_of(by_kind["Q8_0"]), placement=ALL, kept=sides)
    parts.load_transformer()
    assert parts.host_layers is not None
    gone = [weakref.ref(buffer.untyped_storage()) for buffer in parts.host_layers.buffers.values()]
    gc.disable()  # nothing may wait for the collector of cycles
    try:
        parts.release_transformer()
        assert [ref() for ref in gone] == [None] * SIZES.num_layers
    finally:
        gc.enable()


@pytest.mark.parametrize("format", [FLOAT8, INT8])
@pytest.mark.parametrize("kind", WIDEN)
def test_the_workspace_is_what_the_plan_counts(kind: str, format: torch.dtype) -> None:
    """At full size, on a device that keeps no numbers: in 8 bits, with two LoRAs."""
    card, (rows, columns) = torch.device("meta"), (13824, 5120)
    block, block_bytes = BLOCKS[kind]
    data = torch.empty(rows * columns // block * block_bytes, dtype=torch.uint8, device=card)
    halves = {
        "down": torch.empty(128, columns, dtype=torch.bfloat16, device=card),
        "up": torch.empty(rows, 128, dtype=torch.bfloat16, device=card),
    }
    adapter = Lora(halves.__getitem__, {"name": Change(down="down", up="up")}, 64.0)
    stored = StoredTensor("name", StoredBlocks(data, kind, (rows, columns)), (adapter, adapter))
    num_rows = 0
    with Live() as live:
        for _, values in stored.pieces():
            num_rows += len(quantise_weight(values, format)[0])
    assert num_rows == rows
    assert GGUF_WORKSPACE_BYTES // 2 < live.peak_bytes < GGUF_WORKSPACE_BYTES * 3 // 4
