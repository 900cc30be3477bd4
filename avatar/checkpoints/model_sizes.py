"""The sizes of the model's parts: from a checkpoint's own headers, or the published model's counts."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from avatar.checkpoints.block_sizes import BlockSizes, block_sizes
from avatar.checkpoints.locations import LORA_FILE, Checkpoint
from avatar.checkpoints.lora_files import parse_loras
from avatar.checkpoints.tensor_headers import GGUF
from avatar.checkpoints.tensor_names import file_shapes
from avatar.checkpoints.transformer_config import AUDIO_ENCODER, ModelConfig
from avatar.errors import BadInput, WeightsMissing
from avatar.settings import EIGHT_BIT

log = logging.getLogger(__name__)

DTYPE_BYTES = {"bf16": 2, "fp8": 1, "int8": 1, "8bit": 1, "fp32": 4}
SCALE_BYTES = 4  # per output channel of a matrix in 8 bits

TEXT_BLOCK_VALUES = 192_948_224  # of UMT5-XXL's encoder
TEXT_ENCODER_VALUES = 24 * TEXT_BLOCK_VALUES + 4096  # with the last norm; token embeddings stay in their file
SPEECH_ENCODER_VALUES = 315_438_720  # wav2vec2-large
VAE_ENCODER_VALUES, VAE_DECODER_VALUES = 53_596_928, 73_295_603  # Wan 2.1's
TINY_DECODER_VALUES = 9_844_611  # TAEHV's and LightTAE's for Wan 2.1, without their encoder
AUDIO_VALUES = 95_051_545  # of the published transformer's audio encoder, held in float32
OTHER_VALUES = 257_003_584  # its embeddings, head and frame packer


@dataclass(frozen=True)
class Weights:
    """Counts of values in matrices, which are quantised, of the matrices' output channels, and of all others.

    wide: values that stay in float32 whatever the dtype.
    """

    matrices: int = 0
    channels: int = 0
    others: int = 0
    wide: int = 0

    def num_bytes(self, dtype: str) -> int:
        """Size in a preset's weight_dtype; in 8 bits, everything but matrices stays in bf16."""
        wide = DTYPE_BYTES["fp32"] * self.wide
        if dtype not in EIGHT_BIT:
            return (self.matrices + self.others) * DTYPE_BYTES[dtype] + wide
        return self.matrices + SCALE_BYTES * self.channels + DTYPE_BYTES["bf16"] * self.others + wide

    def __add__(self, more: Weights) -> Weights:
        return Weights(
            self.matrices + more.matrices,
            self.channels + more.channels,
            self.others + more.others,
            self.wide + more.wide,
        )

    @classmethod
    def of(cls, shape: Iterable[int]) -> Weights:
        """The counts of one tensor; a tensor with two axes is a matrix."""
        sides = tuple(shape)
        if len(sides) == 2:
            return cls(math.prod(sides), sides[0], 0)
        return cls(others=math.prod(sides))


@dataclass(frozen=True)
class ModelSizes:
    """layers: each with its audio injection, if any. others: the rest of the transformer, never quantised.

    blocks: the layers as a GGUF file stores them, None for other files.
    """

    config: ModelConfig = field(default_factory=ModelConfig)
    layers: tuple[Weights, ...] = ()
    others: Weights = Weights(others=OTHER_VALUES, wide=AUDIO_VALUES)
    blocks: BlockSizes | None = None

    @classmethod
    def published(cls, config: ModelConfig | None = None) -> ModelSizes:
        """The sizes of Wan2.2-S2V-14B, or of the same architecture with another config."""
        config = config or ModelConfig()
        return cls(config, tuple(_layer(config, index) for index in range(config.num_layers)))

    @classmethod
    def of(cls, checkpoint: Checkpoint, loras: str = "") -> ModelSizes:
        """A checkpoint's sizes; the published ones where there is none, or it cannot be read.

        loras: the user's, as the setting names them; they count where layers are kept as GGUF blocks.
        """
        config, shards = checkpoint.config, checkpoint.shards
        if config is None or not shards or not checkpoint.complete:
            return cls.published()
        try:
            sizes = _of_files(config, tuple(shards))
            if shards[0].suffix != GGUF:
                return sizes
            return replace(sizes, blocks=block_sizes(sizes.config, shards[0], _loras(checkpoint, loras)))
        except (WeightsMissing, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.info("planned with the published sizes: the checkpoint's cannot be read (%s)", error)
            return cls.published()  # loading will report what is wrong

    @property
    def transformer(self) -> Weights:
        """The whole transformer."""
        return sum(self.layers, self.others)


def _layer(config: ModelConfig, index: int) -> Weights:
    """One layer: two attentions of four projections and the feed-forward; norms, biases and modulation."""
    width, wide = config.dim, config.ffn_dim
    layer = Weights(8 * width**2 + 2 * width * wide, 9 * width + wide, 21 * width + wide)
    if index not in config.audio_inject_layers:
        return layer
    return layer + Weights(6 * width**2, 6 * width, 8 * width)


def _loras(checkpoint: Checkpoint, named: str) -> list[Path]:
    """The published LoRA's file and the user's; those that do not exist are refused elsewhere, by name."""
    published = [] if checkpoint.lora is None else [checkpoint.lora / LORA_FILE]
    try:
        return published + [lora.path for lora in parse_loras(named)]
    except BadInput:
        return published


@lru_cache(maxsize=4)
def _of_files(config_file: Path, shards: tuple[Path, ...]) -> ModelSizes:
    config = ModelConfig.load(config_file)
    layers = [Weights()] * config.num_layers
    others = Weights()
    for path in shards:
        for name, shape in file_shapes(path).items():
            index = config.layer_of(name)
            if index is not None:
                layers[index] += Weights.of(shape)
            elif name.startswith(f"{AUDIO_ENCODER}."):
                others += Weights(wide=math.prod(shape))
            else:
                others += Weights(others=math.prod(shape))
    return ModelSizes(config, tuple(layers), others)
