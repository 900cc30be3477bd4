"""The memory of a run, item by item, on one GPU and on the host: pure arithmetic.

Constants were measured on one H200 (torch 2.11, random weights) or counted from the models.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from avatar.checkpoints.block_sizes import BlockSizes
from avatar.checkpoints.model_sizes import (
    DTYPE_BYTES,
    SPEECH_ENCODER_VALUES,
    TEXT_BLOCK_VALUES,
    TEXT_ENCODER_VALUES,
    TINY_DECODER_VALUES,
    VAE_DECODER_VALUES,
    VAE_ENCODER_VALUES,
    ModelSizes,
)
from avatar.errors import BadInput
from avatar.geometry import BLOCK_LATENT_FRAMES, FPS, VAE_TIME_STRIDE, Geometry
from avatar.planning.placement import RING_SLOTS, Placement, spread
from avatar.planning.plan import ALWAYS, GIB, MemoryItem, RunPhase, bytes_by_stage
from avatar.preset import Preset
from avatar.settings import Memory

ENCODE, LISTEN, DENOISE, DECODE = RunPhase.ENCODE, RunPhase.LISTEN, RunPhase.DENOISE, RunPhase.DECODE

RING_SCALE_BYTES = 4  # in fp8, per token and head, for key and value

# The decoder's causal pasts, 2 frames of bf16 per convolution: 7 at full size with 96 channels (the first
# with 192), 6 at half size with 192 (one with 384), 6 at a quarter and 11 at an eighth with 384.
DECODE_PAST_BYTES_PER_PX = 5100
DECODE_WORKSPACE_BYTES_PER_PX = 9_400  # one latent frame at a time, including its new pasts
# The tiny decoder's, in half precision whatever the dtype: one frame per memory block, 3 at an eighth of the
# size with 256 channels, 3 at a quarter with 128, 3 at half with 64.
TINY_PAST_BYTES_PER_PX = 168
# A block's frames at half size with 64 channels, 384; of 4 of them at full size the input and output of the
# widest convolution, 1024; the finished frames, 72, on their way to 8 bits. Counted, not yet measured.
TINY_WORKSPACE_BYTES_PER_PX = 1_600
ENCODE_WORKSPACE_BYTES_PER_PX = 6500  # the VAE encodes 4 frames at a time and keeps pasts, too
POSE_CLIP_FRAMES = 96  # of a pose video, the most that is encoded at once
SPEECH_WINDOW_S = 60.0  # the most that goes through the speech encoder at once
SPEECH_STATES_BYTES_PER_S = 25 * 50 * 1024 * 4  # all layers' hidden states
SPEECH_WORKSPACE_BYTES_PER_S = 3 * 3200 * 512 * 4  # three copies of the first convolution's output

# A piece of a tensor in GGUF blocks while it is dequantised, merged with its LoRAs and rounded, 68 MiB (73
# for int8, which is rotated); and cuBLAS's second workspace, for the stream on which that is done.
GGUF_WORKSPACE_BYTES = GIB // 8

CUDA_CONTEXT_BYTES = 80 * GIB // 100  # with loaded kernels: 0.75 to 0.87 GiB; other cards take less
LIBRARY_WORKSPACE_BYTES = GIB // 16  # cuBLAS
# Per NCCL communicator, with the 2 or 8 channels that distributed.rendezvous allows: 0.4 to 0.6 GiB.
COMMUNICATION_BYTES = 45 * GIB // 100
# One of the prompt encoder's matrices while it is widened to float32 and rounded, and a prompt's attention.
TEXT_WORKSPACE_BYTES = 3 * GIB // 8
# Of a sharded prompt encoder, FSDP2 holds one block at work and two in all-gather buffers.
GATHERED_TEXT_BLOCKS = 3
# Memory that the allocator reserves but cannot use: 0.3 GiB of 8, 0.7 of 9, 1.0 of 20, 1.1 of 39, 1.2 of 68.
MARGIN_BYTES = 3 * GIB // 4
SMALL_MARGIN_SHARE = 0.05  # of all else, where that is less and a single GPU does the work
GATHERING_MARGIN_BYTES = 3 * GIB // 10  # likewise, where gathered layers allocate and free their buffers
MARGIN_SHARE = 0.006  # of all else

SUMMED_TENSORS = 3  # of a block's tokens, where the injections of several speakers are added up

TORCH_RUNTIME_BYTES = 3 * GIB  # one engine process: torch, CUDA's host side and the libraries
LOADING_BYTES = 2 * GIB  # tensors in transit; the files are mapped, so the system can reclaim their pages


@dataclass(frozen=True)
class RunShape:
    """The video to generate, and with which model.

    geometry: the largest that the preset's size allows. num_speakers: faces with a voice of their own.
    has_pose: whether a pose video leads it.
    """

    preset: Preset
    sizes: ModelSizes
    geometry: Geometry
    speech_s: float = SPEECH_WINDOW_S
    num_speakers: int = 1
    has_pose: bool = False

    @property
    def memory(self) -> Memory:
        return self.preset.memory

    @property
    def dtype(self) -> str:
        """The dtype of activations and arithmetic."""
        return "fp32" if self.memory.weight_dtype == "fp32" else "bf16"

    @cached_property
    def layer_bytes(self) -> tuple[int, ...]:
        """Size of each layer's weights in the preset's weight_dtype."""
        return tuple(layer.num_bytes(self.memory.weight_dtype) for layer in self.sizes.layers)

    @property
    def ring_dtype(self) -> str:
        """The dtype of the KV rings; 8-bit attention overrides the preset's ring_dtype."""
        return "int8" if self.memory.attention_dtype == "int8" else self.memory.ring_dtype

    @property
    def ring_bytes(self) -> int:
        """Bytes of one layer's ring at one step: keys and values of past frames."""
        values = 2 * self.geometry.past_frames * self.geometry.frame_tokens * self.sizes.config.dim
        dtype = self.ring_dtype
        scales = values // self.sizes.config.head_dim if dtype == "fp8" else 0
        return values * DTYPE_BYTES[dtype] + scales * RING_SCALE_BYTES

    @property
    def speech_states_bytes(self) -> int:
        window_s = min(self.speech_s, SPEECH_WINDOW_S)
        return self.num_speakers * round(SPEECH_STATES_BYTES_PER_S * window_s)

    @property
    def speech_workspace_bytes(self) -> int:
        return round(SPEECH_WORKSPACE_BYTES_PER_S * min(self.speech_s, SPEECH_WINDOW_S))

    @property
    def pose_clip_bytes(self) -> int:
        """One clip of a pose video on its way to the VAE: in fp32 as it arrives, and in the VAE's dtype."""
        num_frames = min(self.preset.generation.infer_frames, POSE_CLIP_FRAMES) + 1
        values = 3 * num_frames * self.geometry.width * self.geometry.height
        return values * (DTYPE_BYTES["fp32"] + DTYPE_BYTES[self.dtype])

    @property
    def pose_latents_bytes(self) -> int:
        """The latents of a whole pose video, which wait on the host."""
        num_frames = self.speech_s * FPS / VAE_TIME_STRIDE + 2 * BLOCK_LATENT_FRAMES
        per_frame = 16 * self.geometry.latent_height * self.geometry.latent_width
        return round(num_frames * per_frame * DTYPE_BYTES[self.dtype])


@dataclass(frozen=True)
class RankShare:
    """One GPU's part of a run.

    layers: those it computes; none for a GPU that only decodes. num_steps: the denoising steps it computes.
    num_rings: KV rings it keeps, for its layers at its steps. heads: its fraction of the attention heads.
    weights: its fraction of its layers' weights; below 1, layers are gathered as they are used.
    num_anchors: versions of the condition it keeps. num_blocks: blocks between their first and last step on
    this GPU. has_sides: VAE and speech encoder are here. decodes_meanwhile: it decodes one block while
    others are denoised. text: its fraction of the prompt encoder, while a prompt is encoded.
    num_communicators: NCCL communicators to other GPUs.
    """

    layers: range
    num_steps: int
    num_rings: int
    heads: float = 1.0
    weights: float = 1.0
    num_anchors: int = 1
    num_blocks: int = 1
    has_sides: bool = True
    decodes_meanwhile: bool = False
    text: float = 0.0
    num_communicators: int = 0


def gpu_items(run: RunShape, share: RankShare, placement: Placement) -> tuple[MemoryItem, ...]:
    """Everything in one GPU's memory, and in which phases."""
    items = [
        *(_transformer(run, share, placement) if share.layers else ()),
        *(_caches(run, share, placement) if share.layers else ()),
        *(_side_models(run, placement) if share.has_sides else ()),
        *(_prompt_encoder(run, share) if share.text else ()),
        MemoryItem("cuda_context", CUDA_CONTEXT_BYTES),
        MemoryItem("library_workspace", LIBRARY_WORKSPACE_BYTES),
    ]
    if share.num_communicators:
        items.append(MemoryItem("communication", share.num_communicators * COMMUNICATION_BYTES))
    fullest = max(bytes_by_stage(items).values())
    decoding = MARGIN_BYTES if share.has_sides else 0
    if share.layers and not share.num_communicators:
        decoding = min(decoding, round(SMALL_MARGIN_SHARE * fullest))
    gathering = GATHERING_MARGIN_BYTES if share.weights < 1 else 0
    return (*items, MemoryItem("margin", decoding + gathering + round(MARGIN_SHARE * fullest)))


def host_items(run: RunShape, shares: list[RankShare], placement: Placement) -> tuple[MemoryItem, ...]:
    """Everything in the host's memory, and in which phases."""
    running = (LISTEN, DENOISE, DECODE)
    items = [
        MemoryItem("runtime", TORCH_RUNTIME_BYTES * len(shares)),
        MemoryItem("loading", LOADING_BYTES, (ENCODE,)),
    ]
    if run.has_pose:
        items.append(MemoryItem("pose_latents", run.pose_latents_bytes))
    if run.memory.text_encoder == "cpu":
        items.append(_text_block(run))
    away = sum(_away_bytes(run, share, placement) for share in shares)
    if away:
        name = "gguf_blocks" if placement.layers_in_blocks else "transformer_weights"
        items.append(MemoryItem(name, away))
    if placement.rings_on_host:
        items.append(MemoryItem("kv_rings", sum(_rings_bytes(run, share) for share in shares), running))
    if placement.side_models_on_host:
        items.append(MemoryItem("speech_encoder", _values(SPEECH_ENCODER_VALUES, "fp32")))
        items.append(MemoryItem("vae_encoder", _values(VAE_ENCODER_VALUES, run.dtype)))
        items.append(MemoryItem("speech_states", run.speech_states_bytes, running))
    if placement.speech_on_cpu:
        items.append(MemoryItem("speech_workspace", run.speech_workspace_bytes, (LISTEN,)))
    return tuple(items)


def traffic_bytes(run: RunShape, shares: list[RankShare], placement: Placement) -> int:
    """Bytes that cross the bus to the GPUs per block: rings once, layers at each step or once for all."""
    total = 0
    for share in shares:
        times = 1 if placement.diagonal else share.num_steps
        total += times * _away_bytes(run, share, placement)
        total += _rings_bytes(run, share) if placement.rings_on_host else 0
    return total


def _transformer(run: RunShape, share: RankShare, placement: Placement) -> list[MemoryItem]:
    """The transformer's weights; without online decode they leave the GPU before the decoder runs."""
    loaded = ALWAYS if run.memory.enable_online_decode else (ENCODE, LISTEN, DENOISE)
    layers, away = run.layer_bytes, frozenset(_on_host(share, placement))
    here = sum(layers[index] for index in share.layers if index not in away)
    items = [
        MemoryItem("transformer_weights", round(here * share.weights), loaded),
    ]
    if share.layers.start == 0:
        items.append(MemoryItem("embeddings", run.sizes.others.num_bytes(run.memory.weight_dtype), loaded))
    if share.weights < 1:
        sizes = [layers[index] for index in share.layers]
        # The current layer; the next one, and its all-gather buffer.
        gathered = max(here + 2 * coming for here, coming in zip(sizes, sizes[1:] + sizes[:1], strict=True))
        items.append(MemoryItem("gathered_layers", gathered, loaded))
    if away:
        slot = max(layers[index] for index in away)
        items.append(MemoryItem("layer_slots", placement.layers_ahead * slot, loaded))
    if away and placement.layers_in_blocks:
        items.append(MemoryItem("gguf_workspace", GGUF_WORKSPACE_BYTES + _blocks(run).largest, loaded))
    return items


def _caches(run: RunShape, share: RankShare, placement: Placement) -> list[MemoryItem]:
    """KV caches, the window that one layer attends to, and activations."""
    model, geometry, wide = run.sizes.config, run.geometry, DTYPE_BYTES[run.dtype]
    online = run.memory.enable_online_decode
    rolling = (LISTEN, DENOISE, DECODE) if online else (LISTEN, DENOISE)
    denoising = (DENOISE, DECODE) if share.decodes_meanwhile and online else (DENOISE,)
    token = 2 * model.dim * wide * share.heads  # a key and a value in one layer
    if placement.rings_on_host:
        # In int8 the values are transposed on arrival, which takes another half of a ring.
        landing = run.ring_bytes // 2 if run.ring_dtype == "int8" else 0
        rings = MemoryItem("ring_slots", RING_SLOTS * run.ring_bytes + landing, rolling)
    else:
        rings = MemoryItem("kv_rings", _rings_bytes(run, share), rolling)
    window = geometry.window_frames * geometry.frame_tokens + geometry.condition_tokens
    at_once = share.num_steps if placement.diagonal else 1
    # On a diagonal, blocks of two conditions may be in flight.
    anchors = max(share.num_anchors, 2 if placement.diagonal else 1)
    condition = anchors * geometry.condition_tokens
    # Keys and values; or a short prompt's keys, and each head's values already output-projected.
    text = max(2 * model.text_len, (1 + model.num_heads) * model.short_text_tokens) * model.dim * wide
    # Each head's values of a block's audio tokens, already output-projected.
    spoken = (
        run.num_speakers
        * BLOCK_LATENT_FRAMES
        * (model.num_audio_token + 1)
        * model.num_heads
        * model.dim
        * wide
    )
    injections = sum(index in share.layers for index in model.audio_inject_layers)
    waiting = geometry.block_tokens * model.dim * wide  # a block's tokens between two layers
    # Four tensors of model width at once, and the feed-forward's; twice, as each is built from another.
    within = 2 * geometry.block_tokens * (4 * model.dim + model.ffn_dim) * wide
    if injections and run.num_speakers > 1:
        within += SUMMED_TENSORS * waiting
    return [
        rings,
        MemoryItem("condition_kv", round(len(share.layers) * condition * token), rolling),
        MemoryItem("text_kv", len(share.layers) * text, rolling),
        MemoryItem("window", round(window * token), rolling),
        MemoryItem("audio_injections", max(share.num_blocks, at_once) * injections * spoken, rolling),
        MemoryItem("activations", within + (at_once - 1) * waiting, denoising),
    ]


def _side_models(run: RunShape, placement: Placement) -> list[MemoryItem]:
    """The VAE and the speech encoder, with their workspaces."""
    pixels = run.geometry.width * run.geometry.height
    online, wait = run.memory.enable_online_decode, placement.side_models_on_host
    decoding = (LISTEN, DENOISE, DECODE) if online else (DECODE,)
    running = (LISTEN, DENOISE, DECODE)
    speech = [
        MemoryItem("speech_encoder", _values(SPEECH_ENCODER_VALUES, "fp32"), (LISTEN,) if wait else ALWAYS),
        MemoryItem("speech_states", run.speech_states_bytes, (LISTEN,) if wait else running),
        MemoryItem("speech_workspace", run.speech_workspace_bytes, (LISTEN,)),
    ]
    return [
        *_decoder(run, pixels, decoding),
        MemoryItem("vae_encoder", _values(VAE_ENCODER_VALUES, run.dtype), (ENCODE,) if wait else ALWAYS),
        MemoryItem("encode_workspace", ENCODE_WORKSPACE_BYTES_PER_PX * pixels, (ENCODE,)),
        *([MemoryItem("pose_clip", run.pose_clip_bytes, (ENCODE,))] if run.has_pose else ()),
        *([] if placement.speech_on_cpu else speech),
    ]


def _decoder(run: RunShape, pixels: int, decoding: tuple[RunPhase, ...]) -> list[MemoryItem]:
    """The VAE's decoder, or the tiny one in its place; decoding: the phases in which its pasts are kept."""
    if run.memory.decoder == "tiny":
        return [
            MemoryItem("tiny_decoder", _values(TINY_DECODER_VALUES, "bf16")),  # as wide as half precision
            MemoryItem("decode_pasts", TINY_PAST_BYTES_PER_PX * pixels, decoding),
            MemoryItem("decode_workspace", TINY_WORKSPACE_BYTES_PER_PX * pixels, (DECODE,)),
        ]
    return [
        MemoryItem("vae_decoder", _values(VAE_DECODER_VALUES, run.dtype)),
        MemoryItem("decode_pasts", DECODE_PAST_BYTES_PER_PX * pixels, decoding),
        MemoryItem("decode_workspace", DECODE_WORKSPACE_BYTES_PER_PX * pixels, (DECODE,)),
    ]


def _prompt_encoder(run: RunShape, share: RankShare) -> list[MemoryItem]:
    """While a prompt is encoded: one block; or a shard of all, gathered blocks and a communicator."""
    if share.text == 1:
        return [_text_block(run)]
    gathered = _values(GATHERED_TEXT_BLOCKS * TEXT_BLOCK_VALUES, run.dtype)
    return [
        MemoryItem("text_encoder", _values(TEXT_ENCODER_VALUES * share.text, run.dtype), (ENCODE,)),
        MemoryItem("gathered_text_blocks", gathered, (ENCODE,)),
        MemoryItem("text_communication", COMMUNICATION_BYTES, (ENCODE,)),
    ]


def _text_block(run: RunShape) -> MemoryItem:
    """The block of the prompt encoder that is computed; the others are in their file."""
    num_bytes = _values(TEXT_BLOCK_VALUES, run.dtype) + TEXT_WORKSPACE_BYTES
    return MemoryItem("text_encoder_block", num_bytes, (ENCODE,))


def _on_host(share: RankShare, placement: Placement) -> list[int]:
    """Which of a share's layers are offloaded to the host."""
    count = min(placement.layers_on_host, len(share.layers))
    return [share.layers[place] for place in spread(len(share.layers), count)]


def _away_bytes(run: RunShape, share: RankShare, placement: Placement) -> int:
    """Bytes of a share's layers that are offloaded, as they are kept."""
    indices = _on_host(share, placement)
    if placement.layers_in_blocks:
        return sum(_blocks(run).layers[index] for index in indices)
    return sum(run.layer_bytes[index] for index in indices)


def _blocks(run: RunShape) -> BlockSizes:
    """The sizes of the model's layers as GGUF blocks. Raises: BadInput for a model in other files."""
    if run.sizes.blocks is None:
        raise BadInput(
            "Layers can be kept as GGUF blocks only where the transformer is a GGUF file.",
            "Choose a GGUF file with --ckpt_dir.",
        )
    return run.sizes.blocks


def _rings_bytes(run: RunShape, share: RankShare) -> int:
    """Bytes of all rings of a share."""
    return round(share.num_rings * share.heads * run.ring_bytes)


def _values(count: float, dtype: str) -> int:
    return round(count * DTYPE_BYTES[dtype])
