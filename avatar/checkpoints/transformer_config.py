"""The transformer's sizes, from a checkpoint's config.json or its tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from avatar.checkpoints.tensor_headers import Shape
from avatar.checkpoints.tensor_names import transformer_shapes
from avatar.errors import WeightsMissing

# Values of the published model that this code assumes; another value would be another architecture.
FIXED: dict[str, Any] = {
    "model_type": "s2v",
    "adain_mode": "attn_norm",
    "enable_adain": True,
    "enable_framepack": True,
    "enable_motioner": False,
    "enable_tsm": False,
    "framepack_drop_mode": "padd",
    "add_last_motion": True,
    "zero_timestep": True,
    "qk_norm": True,
    "cross_attn_norm": True,
    "patch_size": (1, 2, 2),
}
# How tensors' names begin: the audio encoder's (spelt as in the checkpoint), a layer's, an injection's.
AUDIO_ENCODER, LAYER, INJECTION = "casual_audio_encoder", "blocks", "audio_injector"

HEAD_WIDTH = 128
WRONG_MODEL = "Use the checkpoint Wan-AI/Wan2.2-S2V-14B, or another of the same architecture."


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the streaming transformer; the defaults are Wan2.2-S2V-14B's."""

    dim: int = 5120
    ffn_dim: int = 13824
    num_heads: int = 40
    num_layers: int = 40
    in_dim: int = 16
    out_dim: int = 16
    cond_dim: int = 16
    freq_dim: int = 256
    text_dim: int = 4096
    text_len: int = 512
    audio_dim: int = 1024
    num_audio_token: int = 4
    audio_inject_layers: tuple[int, ...] = (0, 4, 8, 12, 16, 20, 24, 27, 30, 33, 36, 39)
    eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.num_heads < 1 or self.dim % (2 * self.num_heads):
            raise WeightsMissing(
                f"config.json: dim {self.dim} does not divide into {self.num_heads} heads.", WRONG_MODEL
            )
        if any(not 0 <= layer < self.num_layers for layer in self.audio_inject_layers):
            raise WeightsMissing(
                f"config.json: audio_inject_layers names a layer beyond {self.num_layers}.", WRONG_MODEL
            )

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @property
    def short_text_tokens(self) -> int:
        """Prompts with fewer tokens count as short.

        At head_dim tokens nothing is saved; at a quarter of it, memory is little more than keys and values.
        """
        return self.head_dim // 4

    def layer_of(self, name: str) -> int | None:
        """The layer to which a tensor belongs, itself or by its audio injection; None outside the layers."""
        part, *rest = name.split(".")
        if part == LAYER:
            return int(rest[0])
        return self.audio_inject_layers[int(rest[1])] if part == INJECTION else None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelConfig:
        """Read the published keys; those that do not concern inference are ignored.

        Raises: WeightsMissing when the config describes an architecture that this code does not support.
        """
        for key, expected in FIXED.items():
            found = data.get(key, expected)
            found = tuple(found) if isinstance(found, list) else found
            if found != expected:
                raise WeightsMissing(f"config.json: {key} is {found!r}, not {expected!r}.", WRONG_MODEL)
        known = {field.name for field in fields(cls)}
        values: dict[str, Any] = {
            key: tuple(v) if isinstance(v, list) else v for key, v in data.items() if key in known
        }
        for key, value in values.items():
            if isinstance(value, bool) or not isinstance(value, int | float | tuple):
                raise WeightsMissing(f"config.json: {key} is {value!r}, not a number.", WRONG_MODEL)
        missing = {"dim", "ffn_dim", "num_heads", "num_layers", "audio_inject_layers"} - values.keys()
        if missing:
            raise WeightsMissing(f"config.json lacks {', '.join(sorted(missing))}.", WRONG_MODEL)
        return cls(**values)

    @classmethod
    def of_shapes(cls, shapes: Mapping[str, Shape], file_name: str) -> ModelConfig:
        """Infer the sizes from tensor shapes, as ComfyUI does; heads are 128 wide, and the layers with audio
        are the published ones.

        Source: ComfyUI comfy/model_detection.py, and WanModel_S2V in comfy/ldm/wan/model.py.
        Raises: WeightsMissing naming a tensor that another model lacks.
        """
        try:
            dim, in_dim = shapes["patch_embedding.weight"][:2]
            speech = shapes["casual_audio_encoder.encoder.conv1_local.conv.weight"]
            num_layers = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks."))
            injected = {name.split(".")[2] for name in shapes if name.startswith("audio_injector.injector.")}
            return cls(
                dim=dim,
                ffn_dim=shapes["blocks.0.ffn.0.weight"][0],
                num_heads=dim // HEAD_WIDTH,
                num_layers=num_layers,
                in_dim=in_dim,
                out_dim=shapes["head.head.weight"][0] // 4,
                cond_dim=shapes["cond_encoder.weight"][1],
                freq_dim=shapes["time_embedding.0.weight"][1],
                text_dim=shapes["text_embedding.0.weight"][1],
                audio_dim=speech[1],
                num_audio_token=speech[0] // (dim // 4),
                audio_inject_layers=cls.audio_inject_layers[: len(injected)],
            )
        except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
            raise WeightsMissing(f"{file_name} is not Wan2.2-S2V ({error}).", WRONG_MODEL) from error

    @classmethod
    def load(cls, path: Path) -> ModelConfig:
        """Read config.json, or infer the config from a tensor file that comes without one.

        Raises: WeightsMissing when the file is missing, unreadable or for another model.
        """
        if path.suffix != ".json":
            return cls.of_shapes(transformer_shapes([path]), path.name)
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise WeightsMissing(f"{path.name} cannot be read.", WRONG_MODEL) from error
        if not isinstance(data, dict):
            raise WeightsMissing(f"{path.name} is not a JSON object.", WRONG_MODEL)
        return cls.from_dict(data)
