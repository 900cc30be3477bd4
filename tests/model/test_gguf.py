"""GGUF's blocks: every type that is read gives the same bits as gguf-py, and so does a file's head."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from avatar.checkpoints.gguf_header import TYPES, read_gguf
from avatar.errors import WeightsMissing
from avatar.model.weights.gguf import BLOCKS, CHUNK_BLOCKS, WIDEN, widen_blocks
from avatar.model.weights.weight_formats import StoredTensors


def blocks(dtype: str, count: int) -> np.ndarray:
    """Random blocks whose float16 scales are finite."""
    data = np.random.default_rng(0).integers(0, 256, (count, BLOCKS[dtype][1]), dtype=np.uint8)
    ends = {"Q4_1": (1, 3), "Q5_1": (1, 3), "Q4_K": (1, 3), "Q5_K": (1, 3), "Q6_K": (209,)}
    data[:, ends.get(dtype, (1,))] &= 0x3F  # the float16's exponent
    return data


@pytest.mark.parametrize("dtype", WIDEN)
def test_blocks_are_widened_bit_by_bit_as_gguf_does(dtype: str) -> None:
    data = blocks(dtype, CHUNK_BLOCKS // 8)
    expected = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[dtype])
    ours = widen_blocks(torch.from_numpy(data).flatten(), dtype)
    assert np.isfinite(expected).all()
    assert np.array_equal(ours.numpy().view(np.uint32), expected.flatten().view(np.uint32))


def test_more_than_a_chunk_is_widened_alike() -> None:
    data = torch.from_numpy(blocks("Q8_0", CHUNK_BLOCKS + 3)).flatten()
    tail = 34 * 3
    assert torch.equal(widen_blocks(data, "Q8_0")[-96:], widen_blocks(data[-tail:].clone(), "Q8_0"))


def test_types_are_numbered_and_sized_as_gguf_does() -> None:
    for number, (name, block, num_bytes) in TYPES.items():
        kind = gguf.GGMLQuantizationType(number)
        assert (kind.name, gguf.GGML_QUANT_SIZES[kind]) == (name, (block, num_bytes))


def written(path: Path) -> dict[str, np.ndarray]:
    """A file by gguf-py's own writer."""
    rng = np.random.default_rng(1)
    tensors = {
        "blocks.0.ffn.0.weight": rng.standard_normal((8, 64), dtype=np.float32),
        "patch_embedding.weight": rng.standard_normal((6, 4, 1, 2, 2), dtype=np.float32),
        "blocks.0.norm.bias": rng.standard_normal(5, dtype=np.float32),
    }
    writer = gguf.GGUFWriter(path, "wan")
    writer.add_token_list([b"a", "é".encode()])
    writer.add_token_scores([0.5, -1.0])
    writer.add_bool("some.flag", True)
    kind = gguf.GGMLQuantizationType.Q8_0
    for name, values in tensors.items():
        if name.endswith("ffn.0.weight"):
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def test_a_head_is_read_as_gguf_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    tensors = written(path)
    head, reader = read_gguf(path), gguf.GGUFReader(path)
    assert head.values["tokenizer.ggml.tokens"] == [b"a", "é".encode()]
    assert head.values["tokenizer.ggml.scores"] == (0.5, -1.0)
    assert head.values["general.architecture"] == "wan"
    assert {name: reported.shape for name, reported in head.tensors.items()} == {
        name: values.shape for name, values in tensors.items()
    }
    for tensor in reader.tensors:
        reported = head.tensors[tensor.name]
        assert (reported.start, reported.num_bytes) == (tensor.data_offset, tensor.n_bytes)
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(StoredTensors(path)[tensor.name].numpy(), expected)
    table = StoredTensors(path).table("blocks.0.ffn.0.weight")
    whole = StoredTensors(path)["blocks.0.ffn.0.weight"]
    assert torch.equal(table[torch.tensor([[7, 0]])], whole[torch.tensor([[7, 0]])])


@pytest.mark.parametrize("length", [0, 3, 20, 100, -20])
def test_a_file_cut_short_is_refused(length: int, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    written(path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(WeightsMissing, match=r"model\.gguf"):
        StoredTensors(path)


def test_a_type_that_is_not_read_is_named() -> None:
    with pytest.raises(WeightsMissing, match="Q2_K"):
        widen_blocks(torch.zeros(84, dtype=torch.uint8), "Q2_K")
