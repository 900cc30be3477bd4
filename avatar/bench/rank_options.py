"""Under which terms ranks are timed: handed to them by a file, as the weights' place is. No torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from avatar.checkpoints.transformer_config import ModelConfig
from avatar.errors import BadInput
from avatar.planning.estimates import COMMUNICATION_BYTES, CUDA_CONTEXT_BYTES

MEASURED = "measured"  # code of the Notice in which rank 0 tells what it measured, at a run's end


@dataclass(frozen=True)
class BenchOptions:
    """checkpoint: its folder, when named. random: no checkpoint is read. num_layers: only the first so many.

    prompt_tokens: of the random prompt, None for a short one. vram_bytes: as much as a smaller card would
    have, on every rank.
    """

    checkpoint: str | None = None
    random: bool = False
    num_layers: int | None = None
    vram_bytes: int | None = None
    prompt_tokens: int | None = None

    def write(self, path: Path) -> Path:
        """Put them where ranks can read them."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")
        return path

    @classmethod
    def read(cls, path: Path | None) -> BenchOptions:
        """What write wrote."""
        assert path is not None
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def tensor_bytes(self, num_communicators: int) -> int | None:
        """What is left for a rank's tensors beside CUDA's context and NCCL's buffers."""
        if self.vram_bytes is None:
            return None
        return max(self.vram_bytes - CUDA_CONTEXT_BYTES - num_communicators * COMMUNICATION_BYTES, 0)

    def config_of(self, config: ModelConfig) -> ModelConfig:
        """What is timed of a model."""
        return config if self.num_layers is None else first_layers(config, self.num_layers)


def first_layers(config: ModelConfig, num_layers: int) -> ModelConfig:
    """A model of the first layers of another. Raises: BadInput when it has not so many."""
    if not 1 <= num_layers <= config.num_layers:
        raise BadInput(
            f"--layers is {num_layers}; the model has {config.num_layers}.", "Take some of them, or all."
        )
    injecting = tuple(layer for layer in config.audio_inject_layers if layer < num_layers)
    return replace(config, num_layers=num_layers, audio_inject_layers=injecting)
