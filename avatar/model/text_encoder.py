"""UMT5, the prompt encoder: transformers' model and tokenizer, read from any of its files.

A prompt needs every weight once, and another prompt comes seldom. So the weights stay in their file, mapped,
and are read again for each prompt, one block at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel

from avatar.checkpoints.prompt_tokens import open_tokenizer, token_ids
from avatar.checkpoints.tensor_headers import GGUF, SAFETENSORS
from avatar.errors import WeightsMissing
from avatar.model.weights.tensor_files import (
    WRONG_CHECKPOINT,
    Shape,
    build_on_meta,
    open_safetensors,
    read_pth,
    require_match,
    shard_files,
)
from avatar.model.weights.weight_formats import StoredTable, StoredTensors

SHARED = ("shared.weight", "encoder.embed_tokens.weight")  # one tensor under two names
BLOCK = "encoder.block."
# (published name, transformers' name); N is the layer.
NAMES = (
    ("token_embedding.weight", "shared.weight"),
    ("norm.weight", "encoder.final_layer_norm.weight"),
    ("blocks.N.norm1.weight", "encoder.block.N.layer.0.layer_norm.weight"),
    ("blocks.N.attn.{}.weight", "encoder.block.N.layer.0.SelfAttention.{}.weight"),  # q, k, v, o
    (
        "blocks.N.pos_embedding.embedding.weight",
        "encoder.block.N.layer.0.SelfAttention.relative_attention_bias.weight",
    ),
    ("blocks.N.norm2.weight", "encoder.block.N.layer.1.layer_norm.weight"),
    ("blocks.N.ffn.gate.0.weight", "encoder.block.N.layer.1.DenseReluDense.wi_0.weight"),
    ("blocks.N.ffn.fc1.weight", "encoder.block.N.layer.1.DenseReluDense.wi_1.weight"),
    ("blocks.N.ffn.fc2.weight", "encoder.block.N.layer.1.DenseReluDense.wo.weight"),
)


class PromptTokenizer:
    """Prompts to token ids, without loading the encoder."""

    def __init__(self, folder: Path) -> None:
        """folder: contains tokenizer.json. Raises: WeightsMissing."""
        open_tokenizer(folder)
        self._folder = folder

    def __call__(self, prompt: str) -> Tensor:
        """Token ids, 1 N with N ≤ 512, ending with the end token.

        Raises: WeightsMissing; BadInput with the count for a longer prompt, which is never truncated.
        """
        return torch.tensor([token_ids(prompt, self._folder)])


class TextEncoder:
    """Token ids to the hidden states that the transformer's text MLP reads."""

    def __init__(self, model: UMT5EncoderModel) -> None:
        self.model = model

    @classmethod
    def load(cls, path: Path, device: torch.device | str, dtype: torch.dtype) -> TextEncoder:
        """All blocks in memory at once; see TextWeights.open. Raises: WeightsMissing."""
        return TextWeights.open(path).load(device, dtype)

    @torch.no_grad()
    def encode(self, ids: Tensor) -> Tensor:
        """Hidden states N D for one prompt's ids, 1 N; the transformer pads them with rows of zeros."""
        return self.model(input_ids=ids).last_hidden_state[0]


Spread = Callable[[nn.Module], object]
"""Called with each block once its tensors are there, and at last with the stack of them all."""


@dataclass(frozen=True)
class TextWeights:
    """A checked encoder that takes no memory: its model is on the meta device, its tensors are mapped."""

    model: UMT5EncoderModel
    tensors: Mapping[str, Tensor]

    @classmethod
    def open(cls, path: Path) -> TextWeights:
        """Open the published .pth file, a single ComfyUI or GGUF file, or a transformers folder.

        Raises: WeightsMissing.
        """
        tensors: Mapping[str, Tensor]
        if path.is_file() and path.suffix in (SAFETENSORS, GGUF):
            tensors = StoredTensors(path)
            model, found = _model_of(tensors.shapes, path.name), tensors.shapes
        else:
            model, tensors = _from_folder(path) if path.is_dir() else _from_pth(path)
            found = {name: tuple(value.shape) for name, value in tensors.items()}
        shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        twice = {name: shape for name, shape in found.items() if name != SHARED[1]}
        require_match(path.name, {name: shapes[name] for name in shapes if name != SHARED[1]}, twice)
        return cls(model.eval().requires_grad_(False), tensors)

    def load(
        self, device: torch.device | str, dtype: torch.dtype, spread: Spread = lambda module: None
    ) -> TextEncoder:
        """Load the encoder onto a device, block by block. spread: may shard each block as it is loaded."""
        model = self._without_blocks(device, dtype)
        stack = model.encoder
        for index, block in enumerate(stack.block):
            self._place(f"{BLOCK}{index}.", block, device, dtype)
            spread(block)
        spread(stack)
        return TextEncoder(model)

    def streamed(self, device: torch.device | str, dtype: torch.dtype) -> TextEncoder:
        """An encoder that reads each block to compute it, and then drops it: the same bits as load()."""
        model = self._without_blocks(device, dtype)

        def read(prefix: str, block: nn.Module, _: object) -> None:
            self._place(prefix, block, device, dtype)

        def drop(outline: Mapping[str, Tensor], block: nn.Module, *_: object) -> None:
            block.load_state_dict(outline, assign=True)

        for index, block in enumerate(model.encoder.block):
            block.register_forward_pre_hook(partial(read, f"{BLOCK}{index}."))
            block.register_forward_hook(partial(drop, block.state_dict()))
        return TextEncoder(model)

    def _without_blocks(self, device: torch.device | str, dtype: torch.dtype) -> UMT5EncoderModel:
        """A model with all but its blocks, which stay on the meta device."""
        model = deepcopy(self.model)  # so that this object holds no reference to the loaded tensors
        tensors = self.tensors
        table = tensors.table(SHARED[0]) if isinstance(tensors, StoredTensors) else tensors[SHARED[0]]
        model.set_input_embeddings(WordTable(table, device, dtype))
        self._place("encoder.final_layer_norm.", model.encoder.final_layer_norm, device, dtype)
        return model

    def _place(self, prefix: str, module: nn.Module, device: torch.device | str, dtype: torch.dtype) -> None:
        placed = {name: self._read(prefix + name, device).to(device, dtype) for name in module.state_dict()}
        module.load_state_dict(placed, assign=True)

    def _read(self, name: str, device: torch.device | str) -> Tensor:
        """A tensor as its file stores it, or widened on the device."""
        tensors = self.tensors
        return tensors.read(name, device) if isinstance(tensors, StoredTensors) else tensors[name]


class WordTable(nn.Module):
    """The token embedding table, left in its file: a prompt reads at most 512 of its 256,384 rows."""

    def __init__(self, table: Tensor | StoredTable, device: torch.device | str, dtype: torch.dtype) -> None:
        """table: V D on the CPU. device, dtype: for the rows that are looked up."""
        super().__init__()
        self._table, self._place = table, (device, dtype)

    def forward(self, ids: Tensor) -> Tensor:
        """Ids 1 N to vectors 1 N D."""
        return self._table[ids.cpu()].to(*self._place)


def transformers_name(published: str) -> str:
    """A published tensor's name in UMT5EncoderModel; an unknown name is returned unchanged."""
    for ours, theirs in NAMES:
        pattern = re.escape(ours).replace(r"\{\}", "([qkvo])").replace(r"\.N\.", r"\.(\d+)\.")
        match = re.fullmatch(pattern, published)
        if match:
            layer, *projection = match.groups() or ("",)
            return theirs.replace(".N.", f".{layer}.").format(*projection)
    return published


def _from_pth(path: Path) -> tuple[UMT5EncoderModel, dict[str, Tensor]]:
    published = read_pth(path)
    shapes = {transformers_name(name): tuple(tensor.shape) for name, tensor in published.items()}
    return _model_of(shapes, path.name), {transformers_name(name): t for name, t in published.items()}


def _model_of(shapes: Mapping[str, Shape], file_name: str) -> UMT5EncoderModel:
    """The encoder on the meta device, with its sizes inferred from tensor shapes. Raises: WeightsMissing."""
    first = f"{BLOCK}0.layer."
    try:
        vocabulary, width = shapes[SHARED[0]]
        buckets, num_heads = shapes[f"{first}0.SelfAttention.relative_attention_bias.weight"]
        config = UMT5Config(
            vocab_size=vocabulary,
            d_model=width,
            d_kv=shapes[f"{first}0.SelfAttention.q.weight"][0] // num_heads,
            d_ff=shapes[f"{first}1.DenseReluDense.wi_1.weight"][0],
            num_heads=num_heads,
            num_layers=len({name.split(".")[2] for name in shapes if name.startswith(BLOCK)}),
            relative_attention_num_buckets=buckets,
            feed_forward_proj="gated-gelu",
        )
    except KeyError as error:
        text = f"{file_name} is not a UMT5 encoder: it lacks {error.args[0]}."
        raise WeightsMissing(text, WRONG_CHECKPOINT) from error
    with torch.device("meta"):
        return UMT5EncoderModel(config)


def _from_folder(folder: Path) -> tuple[UMT5EncoderModel, dict[str, Tensor]]:
    model = build_on_meta(folder, lambda config: UMT5EncoderModel(UMT5Config.from_dict(config)))
    tensors = {}
    for file in shard_files(folder, "model"):
        with open_safetensors(file) as shard:
            tensors.update({name: shard.get_tensor(name) for name in shard.keys()})  # noqa: SIM118
    if SHARED[0] not in tensors and SHARED[1] in tensors:
        tensors[SHARED[0]] = tensors.pop(SHARED[1])
    return model, tensors
