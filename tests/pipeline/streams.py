"""The golden streams: inputs and expected numbers of the public code, and a denoiser set up for them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from avatar.checkpoints.transformer_config import ModelConfig
from avatar.geometry import BLOCK_FRAMES, BLOCK_LATENT_FRAMES, VAE_SPACE_STRIDE, Geometry
from avatar.model.transformer import StreamingTransformer, held_dtype
from avatar.pipeline.denoiser import Conditions, HeldAudio, LocalDenoiser, time_slice
from avatar.pipeline.flow_match_euler import Schedule
from avatar.pipeline.generation import Block

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = ("basic", "refresh_pose", "two_speakers")


class RecordingSchedule(Schedule):
    """A schedule that remembers every velocity that went through it."""

    def advance(self, latents: Tensor, velocity: Tensor, step: int) -> Tensor:
        self.__dict__.setdefault("velocities", []).append(velocity)
        return super().advance(latents, velocity, step)


@dataclass(frozen=True)
class Stream:
    """One golden stream: its settings and tensors."""

    name: str
    settings: dict
    tensors: dict[str, Tensor]

    @classmethod
    @cache
    def load(cls, name: str) -> Stream:
        settings = json.loads((GOLDEN / f"stream_{name}.json").read_text())
        return cls(name, settings, load_file(GOLDEN / f"stream_{name}.safetensors"))

    @property
    def config(self) -> ModelConfig:
        return ModelConfig.from_dict(self.settings["model"])

    @property
    def geometry(self) -> Geometry:
        width, height = (self.settings[f"latent_{side}"] * VAE_SPACE_STRIDE for side in ("width", "height"))
        return Geometry(width, height, self.settings["window_latent_frames"])

    @property
    def conditions(self) -> Conditions:
        t = self.tensors
        pose, masks = t.get("pose_latents"), t.get("speaker_masks")
        return Conditions(
            text=t["text_embeds"],
            reference=t["ref_latents"][0],
            motion=t["motion_latents"][0],
            audio=HeldAudio(t["audio_features"]),
            pose=None if pose is None else pose[0],
            masks=None if masks is None else masks[..., 0],
        )

    def transformer(self, dtype: torch.dtype = torch.float32, fuse: bool = True) -> StreamingTransformer:
        """The model with the stream's weights, loaded by the checkpoint's names."""
        with torch.device("meta"):
            model = StreamingTransformer(self.config)
        stored = load_file(GOLDEN / f"stream_{self.name}.weights.safetensors")
        weights = {name: tensor.to(held_dtype(name, dtype)) for name, tensor in stored.items()}
        model.load_state_dict(weights, strict=True, assign=True)
        return model.requires_grad_(False).fuse() if fuse else model.requires_grad_(False)

    def denoiser(self, model: StreamingTransformer | None = None, **options) -> LocalDenoiser:
        """A denoiser at the stream's settings; its schedule records velocities."""
        schedule = Schedule.flow_match(self.settings["num_steps"], self.settings["shift"])
        recording = RecordingSchedule(schedule.timesteps, schedule.sigmas)
        return LocalDenoiser(model or self.transformer(), self.geometry, recording, **options)

    def blocks(self) -> Iterator[Block]:
        """The blocks with the noise and the distances that the public code drew."""
        t = self.tensors
        for index in range(self.settings["num_blocks"]):
            first = index * BLOCK_LATENT_FRAMES
            frames = slice(first, first + BLOCK_LATENT_FRAMES)
            pose = t.get("pose_latents")
            yield Block(
                index=index,
                noise=t["noise"][:, frames],
                audio=time_slice(t["audio_features"], -1, index * BLOCK_FRAMES, BLOCK_FRAMES),
                pose=None if pose is None else pose[0, :, frames],
                distances=tuple(t["relative_distances"][index].tolist()),
            )

    def run(self, denoiser: LocalDenoiser) -> Tensor:
        """All latents, 16 F h w; the anchor is refreshed where the stream says."""
        denoiser.begin(self.conditions)
        done: list[Tensor] = []
        for block in self.blocks():
            if block.index == self.settings["anchor_refresh_block"]:
                denoiser.refresh(done[0][:, :1])
            denoiser.submit(block)
            done.append(denoiser.collect())
        return torch.cat(done, dim=1)


class Noted:
    """A Denoiser, and what it was given in which order: "begin" and references, blocks and their noise."""

    def __init__(self, denoiser: LocalDenoiser) -> None:
        self._denoiser, self.events = denoiser, []
        self.geometry, self.schedule = denoiser.geometry, denoiser.schedule
        self.num_in_flight, self.wait_until_begun = denoiser.num_in_flight, denoiser.wait_until_begun
        self.stack, self.collect = denoiser.stack, denoiser.collect

    def begin(self, conditions: Conditions) -> None:
        self.events.append(("begin", conditions.reference))
        self._denoiser.begin(conditions)

    def refresh(self, reference: Tensor) -> None:
        self.events.append(("refresh", reference))
        self._denoiser.refresh(reference)

    def submit(self, block: Block) -> None:
        self.events.append((block.index, block.noise))
        self._denoiser.submit(block)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """The norm of the difference over the norm of what was expected."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())
