"""Map tensor names of other programs' files to the published ones, and recognise a file by its tensors.

Source: ComfyUI comfy/utils.py (convert_old_quants: scaled_fp8, scale_weight), comfy/ops.py (comfy_quant),
comfy/text_encoders/t5.py, comfy/ldm/wan/{model,vae}.py, comfy/audio_encoders/{audio_encoders,wav2vec2}.py;
city96/ComfyUI-GGUF loader.py (the prefix, and llama.cpp's names of T5's tensors).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from avatar.checkpoints.gguf_header import read_gguf
from avatar.checkpoints.tensor_headers import GGUF, SAFETENSORS, Shape, read_header
from avatar.errors import WeightsMissing
from avatar.paths import is_file

TRANSFORMER_PREFIXES = ("model.diffusion_model.", "diffusion_model.")
SPEECH_PREFIX = "wav2vec2."
SCALES = (".scale_weight", ".weight_scale")  # of an fp8 weight: ComfyUI's old name, and its new one
ASIDE = ("scaled_fp8", "spiece_model")  # a marker and a tokenizer, stored as tensors
ASIDE_ENDS = (*SCALES, ".scale_input", ".input_scale", ".comfy_quant")
GGUF_TOKENS = "tokenizer.ggml.tokens"
TOKENIZER_TENSOR = "spiece_model"

LLAMA_NAMES = (  # llama.cpp's to transformers', replaced in this order
    ("enc.", "encoder."),
    (".blk.", ".block."),
    ("token_embd", "shared"),
    ("output_norm", "final_layer_norm"),
    ("attn_q", "layer.0.SelfAttention.q"),
    ("attn_k", "layer.0.SelfAttention.k"),
    ("attn_v", "layer.0.SelfAttention.v"),
    ("attn_o", "layer.0.SelfAttention.o"),
    ("attn_norm", "layer.0.layer_norm"),
    ("attn_rel_b", "layer.0.SelfAttention.relative_attention_bias"),
    ("ffn_up", "layer.1.DenseReluDense.wi_1"),
    ("ffn_down", "layer.1.DenseReluDense.wo"),
    ("ffn_gate", "layer.1.DenseReluDense.wi_0"),
    ("ffn_norm", "layer.1.layer_norm"),
)
# Tensors by which a part's file is recognised.
MARKS = {
    "transformer": ("casual_audio_encoder.weights", "patch_embedding.weight", "frame_packer.proj.weight"),
    "text_encoder": ("shared.weight", "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"),
    "vae": ("conv2.weight", "decoder.middle.0.residual.0.gamma", "encoder.downsamples.0.residual.0.gamma"),
    "speech_encoder": ("feature_projection.projection.weight", "encoder.pos_conv_embed.conv.bias"),
}
VAE_CHANNELS = 16  # of Wan 2.1's latents; Wan 2.2's other VAE has 48


def published_names(names: Iterable[str]) -> dict[str, str]:
    """Map each tensor's published name (umT5, wav2vec2: that of transformers) to its name in the file.

    Scales and markers are left out.
    """
    return {
        _published(name): name
        for name in names
        if name.rpartition(".")[2] not in ASIDE and not name.endswith(ASIDE_ENDS)
    }


def _published(name: str) -> str:
    for prefix in (*TRANSFORMER_PREFIXES, SPEECH_PREFIX):
        name = name.removeprefix(prefix)
    if name.startswith(("enc.", "token_embd")):
        for theirs, ours in LLAMA_NAMES:
            name = name.replace(theirs, ours)
    return name


def file_shapes(path: Path) -> dict[str, Shape]:
    """Shapes of a file's tensors under the published names. Raises: WeightsMissing."""
    shapes = read_header(path).shapes
    return {ours: shapes[theirs] for ours, theirs in published_names(shapes).items()}


def transformer_shapes(files: Iterable[Path]) -> dict[str, Shape]:
    """Shapes of all tensors of some files. Raises: WeightsMissing."""
    return {name: shape for file in files for name, shape in file_shapes(file).items()}


def part_of(path: Path) -> str | None:
    """Which part of the model a file holds, by its tensors' names; None for anything else."""
    try:
        shapes: Mapping[str, Shape] = file_shapes(path)
    except WeightsMissing:
        return None
    part = next((part for part, marks in MARKS.items() if all(mark in shapes for mark in marks)), None)
    if part == "vae" and shapes["conv2.weight"][0] != VAE_CHANNELS:
        return None
    return part


def holds_tokenizer(path: Path) -> bool:
    """Whether a prompt encoder's file contains its tokenizer."""
    if not is_file(path):
        return False
    if path.suffix == GGUF:
        return GGUF_TOKENS in read_gguf(path).values
    return path.suffix == SAFETENSORS and TOKENIZER_TENSOR in read_header(path).shapes
