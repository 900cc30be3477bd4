"""Options of a multi-rank benchmark, passed to ranks as a file in place of the weights' path. No torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from avatar.checkpoints.transformer_config import ModelConfig
from avatar.errors import BadInput
from avatar.planning.estimates import COMMUNICATION_BYTES, CUDA_CONTEXT_BYTES

MEASURED = "measured"  # code of the Notice with which rank 0 reports its measurements at a run's end


@dataclass(frozen=True)
class BenchOptions:
    """Options of a multi-rank benchmark.

    checkpoint: its folder, if given. random: use random weights instead. num_layers: use only the first
    layers. prompt_tokens: length of the random prompt; None for a short one. vram_bytes: GPU memory limit on
    every rank, to simulate a smaller card.
    """

    checkpoint: str | None = None
    random: bool = False
    num_layers: int | None = None
    vram_bytes: int | None = None
    prompt_tokens: int | None = None

    def write(self, path: Path) -> Path:
        """Write the options to a file that the ranks can read."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")
        return path

    @classmethod
    def read(cls, path: Path | None) -> BenchOptions:
        """Read the options from a file made by write()."""
        assert path is not None
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def tensor_bytes(self, num_communicators: int) -> int | None:
        """Bytes left for a rank's tensors after CUDA's context and NCCL's buffers; None for no limit."""
        if self.vram_bytes is None:
            return None
        return max(self.vram_bytes - CUDA_CONTEXT_BYTES - num_communicators * COMMUNICATION_BYTES, 0)

    def config_of(self, config: ModelConfig) -> ModelConfig:
        """A model's config, limited to the layers to time."""
        return config if self.num_layers is None else first_layers(config, self.num_layers)


def first_layers(config: ModelConfig, num_layers: int) -> ModelConfig:
    """The config of a model's first layers. Raises: BadInput when it has fewer."""
    if not 1 <= num_layers <= config.num_layers:
        raise BadInput(
            f"--layers is {num_layers}; the model has {config.num_layers}.", "Take some of them, or all."
        )
    injecting = tuple(layer for layer in config.audio_inject_layers if layer < num_layers)
    return replace(config, num_layers=num_layers, audio_inject_layers=injecting)
