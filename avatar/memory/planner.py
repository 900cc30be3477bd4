"""What a preset needs in bytes, before anything loads: pure arithmetic over geometry and model widths.

An estimate: its constants were measured on one H200 (torch 2.11, random weights) or counted from the model,
and have not been calibrated against this code's own peaks.
"""

from __future__ import annotations

from dataclasses import replace

from avatar.errors import BadInput
from avatar.geometry import BLOCK_FRAMES, SIDE_MULTIPLE, Geometry, Size
from avatar.memory.inventory import Gpu, Inventory
from avatar.memory.plan import ALWAYS, GIB, DevicePlan, Item, Plan, Stage
from avatar.models.config import ModelConfig
from avatar.parallel.layout import Layout
from avatar.preset import Preset

MIB = 2**20
ENCODE, DENOISE, DECODE = Stage.ENCODE, Stage.DENOISE, Stage.DECODE

TRANSFORMER_PARAMETERS = 16.30e9
TEXT_ENCODER_PARAMETERS = 5.7e9  # UMT5-XXL's encoder
SPEECH_ENCODER_PARAMETERS = 0.315e9  # wav2vec2-large
VAE_PARAMETERS = 0.127e9
# fp8: of the real model, with the scales and the 2 % that stay in bf16
WEIGHT_BYTES = {"bf16": 2.0, "fp8": 1.0226, "fp32": 4.0}
# fp8: one float32 scale for each token and head of 128
CACHE_BYTES = {"bf16": 2.0, "fp8": 1.0 + 4 / 128, "fp32": 4.0}

# The decoder's causal pasts, 2 frames of bf16 before each convolution: 7 at full size with 96 channels
# (the first with 192), 6 at a half with 192 (one 384), 6 at a quarter and 11 at an eighth with 384.
DECODE_PAST_BYTES_PER_PX = 5100
# With the pasts, 5.5 GiB for 12 frames of 704×384; measured: 5 to 6 GiB in one piece.
DECODE_BYTES_PER_PX_FRAME = 1390
ENCODE_FRAMES = 4  # the VAE encodes its 73 frames so many at a time

CUDA_CONTEXT_BYTES = GIB // 2
LIBRARY_WORKSPACE_BYTES = GIB // 4
MARGIN_BYTES = GIB // 2  # what the allocator cannot use of what it holds
LAYERS_IN_FLIGHT = 2  # offloaded layers on the GPU at a time: one at work, one on its way

TORCH_RUNTIME_BYTES = 3 * GIB  # the engine's process with torch, CUDA's host side and the libraries
LARGEST_SHARD_BYTES = 10 * GIB  # held while loading
TINY_BYTES = GIB // 2  # the self-test's whole model and its caches

# Measured on two cores with the shipped portraits; the page takes more than the command line, and is counted.
PREVIEW_RUNTIME_BYTES = 180 * MIB  # the page
PREVIEW_MODELS_BYTES = 150 * MIB  # the engine's process with its networks
PREVIEW_BYTES_PER_PX = 110  # source layers, warp grids, frames waiting for the encoder


def plan(preset: Preset, inventory: Inventory) -> Plan:
    """What the preset will hold on every device, against what the machine has free.

    Raises: BadInput for "auto", which must be resolved first, and for a layout that cannot be.
    """
    if preset.engine == "auto":
        raise BadInput(
            f"Preset {preset.name} is no plan yet.", "Resolve it to a preset of this machine first."
        )
    if preset.engine == "preview":
        return Plan(preset.name, preset.engine, (), _host(inventory, _preview_items(preset)))
    if preset.requires.weights == "tiny":
        items = (Item("runtime", TORCH_RUNTIME_BYTES), Item("self_test_model", TINY_BYTES))
        return Plan(preset.name, preset.engine, (), _host(inventory, items))
    model, layout = ModelConfig(), Layout.of(preset)
    gpus = [
        _device(rank, inventory.gpus[rank : rank + 1], _items_of(rank, layout, _gpu_items(preset, model)))
        for rank in range(layout.world_size)
    ]
    return Plan(preset.name, preset.engine, tuple(gpus), _host(inventory, _host_items(preset, model)))


def ring_bytes(preset: Preset, model: ModelConfig) -> int:
    """K and V of the past in every layer, one ring for each denoising step."""
    geometry = largest_geometry(preset)
    tokens = geometry.past_frames * geometry.frame_tokens
    return preset.generation.sample_steps * _kv_bytes(preset, model, tokens)


def weight_bytes(preset: Preset) -> int:
    """The transformer's weights in the preset's dtype."""
    return round(TRANSFORMER_PARAMETERS * WEIGHT_BYTES[preset.memory.weight_dtype])


def largest_geometry(preset: Preset) -> Geometry:
    """The most that any portrait makes of the preset's size: its area in squares of 64 pixels, in one row.

    Raises: BadInput when the area has no room for one square.
    """
    size = Size.parse(preset.generation.size)
    squares = size.area // SIDE_MULTIPLE**2
    return Geometry.of(Size(SIDE_MULTIPLE * squares, SIDE_MULTIPLE), preset.generation.infer_frames)


def _gpu_items(preset: Preset, model: ModelConfig) -> tuple[Item, ...]:
    online, offload = preset.memory.enable_online_decode, preset.memory.offload_model
    geometry = largest_geometry(preset)
    pixels = geometry.width * geometry.height
    rolling = (
        (DENOISE, DECODE) if online else (DENOISE,)
    )  # without it, the transformer leaves before the decode
    loaded = ALWAYS if online else (ENCODE, DENOISE)
    decoding = (DENOISE, DECODE) if online else (DECODE,)
    share_here = LAYERS_IN_FLIGHT / model.num_layers if offload else 1.0
    items = [
        Item("transformer_weights", round(weight_bytes(preset) * share_here), loaded),
        Item("kv_rings", round(ring_bytes(preset, model) * share_here), rolling),
        Item("condition_kv", _plain_kv_bytes(preset, model, geometry.condition_tokens), rolling),
        Item("text_kv", _plain_kv_bytes(preset, model, model.text_len), rolling),
        Item("activations", _activation_bytes(preset, geometry, model), (DENOISE,)),
        Item("vae_weights", _bytes(VAE_PARAMETERS, "bf16")),
        Item("decode_pasts", DECODE_PAST_BYTES_PER_PX * pixels, decoding),
        Item("decode_workspace", DECODE_BYTES_PER_PX_FRAME * pixels * BLOCK_FRAMES, (DECODE,)),
        Item("encode_workspace", DECODE_BYTES_PER_PX_FRAME * pixels * ENCODE_FRAMES, (ENCODE,)),
        Item("speech_encoder", _bytes(SPEECH_ENCODER_PARAMETERS, "fp32")),
        Item("cuda_context", CUDA_CONTEXT_BYTES),
        Item("library_workspace", LIBRARY_WORKSPACE_BYTES),
        Item("margin", MARGIN_BYTES),
    ]
    if preset.memory.text_encoder == "gpu":
        items.append(Item("text_encoder", _bytes(TEXT_ENCODER_PARAMETERS, "bf16"), (ENCODE,)))
    return tuple(items)


def _items_of(rank: int, layout: Layout, items: tuple[Item, ...]) -> tuple[Item, ...]:
    """A rank's part of what a single GPU would hold: side models on rank 0, its share of the transformer."""
    role, model = layout.role_of(rank), layout.config
    layers = len(role.layers) / model.num_layers if role else 0.0
    steps = len(role.steps) / layout.num_steps if role else 0.0
    heads = len(role.heads) / model.num_heads if role else 0.0
    shares = {
        "transformer_weights": layers * (heads if layout.kind == "fsdp" else 1.0),
        "kv_rings": layers * heads * steps,
        "condition_kv": layers * heads,
        "text_kv": layers,
        "activations": 1.0 if role else 0.0,
        **dict.fromkeys(("cuda_context", "library_workspace", "margin"), 1.0),
    }
    own = [
        replace(item, num_bytes=round(item.num_bytes * shares.get(item.name, float(rank == 0))))
        for item in items
    ]
    return tuple(item for item in own if item.num_bytes)


def _host_items(preset: Preset, model: ModelConfig) -> tuple[Item, ...]:
    items = [Item("runtime", TORCH_RUNTIME_BYTES), Item("loading_shard", LARGEST_SHARD_BYTES, (ENCODE,))]
    if preset.memory.text_encoder == "cpu":
        items.append(Item("text_encoder", _bytes(TEXT_ENCODER_PARAMETERS, "bf16"), (ENCODE,)))
    if preset.memory.offload_model:
        items.append(Item("transformer_weights", weight_bytes(preset)))
        items.append(Item("kv_rings", ring_bytes(preset, model), (DENOISE, DECODE)))
    return tuple(items)


def _preview_items(preset: Preset) -> tuple[Item, ...]:
    return (
        Item("runtime", PREVIEW_RUNTIME_BYTES),
        Item("preview_models", PREVIEW_MODELS_BYTES),
        Item("frames", PREVIEW_BYTES_PER_PX * Size.parse(preset.generation.size).area),
    )


def _activation_bytes(preset: Preset, geometry: Geometry, model: ModelConfig) -> int:
    """The most that lives in one layer: eight tensors of the block's width, keys, values, the FFN's two."""
    keys = geometry.window_frames * geometry.frame_tokens + geometry.condition_tokens
    values = 2 * geometry.block_tokens * (4 * model.dim + model.ffn_dim) + 2 * keys * model.dim
    return values * _compute_bytes(preset)


def _kv_bytes(preset: Preset, model: ModelConfig, tokens: int) -> int:
    """K and V of so many tokens in every layer, in the rings' dtype."""
    return round(2 * tokens * model.dim * model.num_layers * CACHE_BYTES[preset.memory.ring_dtype])


def _plain_kv_bytes(preset: Preset, model: ModelConfig, tokens: int) -> int:
    """As _kv_bytes, in the dtype of the arithmetic."""
    return 2 * tokens * model.dim * model.num_layers * _compute_bytes(preset)


def _compute_bytes(preset: Preset) -> int:
    return 4 if preset.memory.weight_dtype == "fp32" else 2


def _bytes(parameters: float, dtype: str) -> int:
    return round(parameters * WEIGHT_BYTES[dtype])


def _device(index: int, there: tuple[Gpu, ...], items: tuple[Item, ...]) -> DevicePlan:
    """there: the GPU, if there is one."""
    if not there:
        return DevicePlan(f"GPU {index} (not here)", index, items, 0, 0)
    (gpu,) = there
    return DevicePlan(str(gpu), gpu.index, items, gpu.usable_bytes, gpu.total_bytes)


def _host(inventory: Inventory, items: tuple[Item, ...]) -> DevicePlan:
    host = inventory.host
    return DevicePlan("the host", None, items, host.ram_available_bytes, host.ram_total_bytes)
