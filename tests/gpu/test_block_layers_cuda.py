"""Layers as GGUF blocks in pinned memory: the GPU makes of them what loading does, and nothing waits."""

from __future__ import annotations

import gc
import json
from dataclasses import asdict
from pathlib import Path

import gguf
import pytest
import torch
from torch import Tensor

from avatar.checkpoints.block_sizes import block_sizes
from avatar.checkpoints.locations import LORA_FILE
from avatar.checkpoints.transformer_config import ModelConfig
from avatar.model.quantize import FLOAT8, INT8
from avatar.model.transformer import StreamingTransformer
from avatar.model.weights.checkpoint import CheckpointFiles
from avatar.model.weights.gguf import BLOCKS, WIDEN, widen_blocks
from avatar.model.weights.loading import go_on
from avatar.pipeline.components import Components
from avatar.pipeline.offload.block_layers import BlockLayers, load_beside_blocks
from avatar.pipeline.offload.pinned import pinned_bytes
from avatar.planning.estimates import GGUF_WORKSPACE_BYTES
from avatar.planning.placement import Placement
from avatar.preset import load_preset
from tests.fixtures.single_files import SIZES, write_gguf_hole, write_lora_hole
from tests.model.test_gguf import blocks
from tests.pipeline.test_block_layers import files_of, owned, tensors_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

CUDA = torch.device("cuda", 0)
ALL = Placement(layers_on_host=SIZES.num_layers, layers_in_blocks=True)


@pytest.mark.parametrize("kind", WIDEN)
def test_the_gpu_dequantises_to_the_cpus_bits(kind: str) -> None:
    data = torch.from_numpy(blocks(kind, 2**22 // BLOCKS[kind][0] + 5)).flatten()  # more than a chunk
    here, there = widen_blocks(data, kind), widen_blocks(data.to(CUDA), kind).cpu()
    assert torch.equal(here.view(torch.int32), there.view(torch.int32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return owned(tmp_path_factory.mktemp("owned"), "Q4_0")


@pytest.mark.parametrize("weight_dtype", ["bf16", "fp8", "int8"])
def test_layers_are_those_that_loading_makes(weight_dtype: str, folder: Path) -> None:
    memory = load_preset("self-test").with_settings(weight_dtype=weight_dtype).memory
    files = files_of(folder)
    near = Components.load(memory, files, device=CUDA)
    far = Components.load(memory, files, placement=ALL, device=CUDA)
    model = near.load_transformer()
    far.load_transformer()
    layers = far.host_layers
    assert isinstance(layers, BlockLayers)
    assert all(buffer.is_pinned() for buffer in layers.buffers.values())
    kept: list[dict[str, Tensor]] = []
    for _ in range(3):  # slots are overwritten while others are read
        kept.clear()
        for index in range(SIZES.num_layers):
            with layers.visit(index) as parts:
                kept.append({name: value.clone() for name, value in tensors_of(parts).items()})
    for index, ours in enumerate(kept):
        expected = tensors_of(model.layer_parts(index))
        assert ours.keys() == expected.keys()
        for name, value in expected.items():
            assert ours[name].dtype == value.dtype, (index, name)
            assert torch.equal(ours[name].view(torch.uint8), value.view(torch.uint8)), (index, name)


def of_full_width(folder: Path, config: ModelConfig) -> CheckpointFiles:
    """Transformer and LoRA with zeros for all numbers; the file's other parts are not read."""
    with torch.device("meta"):
        model = StreamingTransformer(config)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    write_gguf_hole(folder / "model.gguf", shapes, gguf.GGMLQuantizationType.Q8_0)
    write_lora_hole(folder / LORA_FILE, shapes)
    (folder / "config.json").write_text(json.dumps(asdict(config)))
    return CheckpointFiles(
        folder / "config.json", (folder / "model.gguf",), folder, folder, folder, folder, folder / LORA_FILE
    )


@pytest.mark.parametrize("format", [None, FLOAT8, INT8])
def test_at_full_width_memory_is_as_planned_and_nothing_waits(
    format: torch.dtype | None, tmp_path: Path
) -> None:
    config = ModelConfig(num_layers=4, audio_inject_layers=(0, 2))
    files, before = of_full_width(tmp_path, config), pinned_bytes()
    model = load_beside_blocks(files, CUDA, torch.bfloat16, range(4), format=format, check=go_on).fuse()
    gc.collect()
    torch.cuda.synchronize()
    layers = BlockLayers(model, range(4), 2, CUDA, files, go_on)
    sizes = block_sizes(config, files.shards[0], [files.lora])
    assert sum(sizes.layers) <= pinned_bytes() - before < 1.01 * sum(sizes.layers)
    with layers.visit(0):  # libraries' workspaces come once
        pass
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated(CUDA)
    torch.cuda.reset_peak_memory_stats(CUDA)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for index in (1, 2, 3, 0):
            with layers.visit(index) as parts:
                parts.layer.modulation.sum()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated(CUDA) - held <= GGUF_WORKSPACE_BYTES + sizes.largest
    del layers, model, parts
    gc.collect()
    assert pinned_bytes() == before
