"""A toy model of five layers and five heads, its conditions, and a run of it on a group or alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from avatar.checkpoints.transformer_config import ModelConfig
from avatar.distributed.coordinator import Coordinator, assist
from avatar.distributed.loading import share
from avatar.distributed.p2p import MessageChannel
from avatar.distributed.process_groups import Group
from avatar.geometry import Geometry, Size
from avatar.model.linear_8bit import Quantiser
from avatar.model.transformer import StreamingTransformer
from avatar.model.weights.loading import install
from avatar.model.weights.random_weights import random_transformer
from avatar.pipeline.denoiser import Conditions, Denoiser, HeldAudio, LocalDenoiser
from avatar.pipeline.flow_match_euler import Schedule
from avatar.pipeline.layer_stack import CompiledPieces
from avatar.pipeline.rollout import rollout

CONFIG = ModelConfig(
    dim=60,
    ffn_dim=64,
    num_heads=5,
    num_layers=5,
    freq_dim=32,
    text_dim=24,
    text_len=16,
    audio_dim=24,
    audio_inject_layers=(0, 2, 4),
)
QUANTISABLE = replace(CONFIG, dim=80)  # sides that are multiples of 16
SIZE = Size(128, 64)  # 32 tokens a frame: neither by 3 nor by 5
FLOAT = torch.float32


@functools.cache
def weights(config: ModelConfig = CONFIG) -> dict[str, Tensor]:
    """The same on every rank."""
    return random_transformer(config, "cpu", FLOAT, seed=5).state_dict()


def conditions(geometry: Geometry, num_speakers: int = 1, pose: bool = False) -> Conditions:
    """Random, the same on every rank."""
    random = functools.partial(torch.randn, generator=torch.Generator().manual_seed(3))
    height, width = geometry.latent_height, geometry.latent_width
    masks = torch.rand(2, 3, geometry.rows, geometry.columns, generator=torch.Generator().manual_seed(4))
    return Conditions(
        text=random(7, CONFIG.text_dim),
        reference=random(16, 1, height, width),
        motion=random(16, 19, height, width),
        audio=HeldAudio(random(num_speakers, 25, CONFIG.audio_dim, 150)),
        pose=random(16, 25, height, width) if pose else None,
        masks=masks if num_speakers == 2 else None,
    )


def schedule(options: dict[str, Any]) -> Schedule:
    return Schedule.flow_match(options.get("num_steps", 4))


def geometry_of(options: dict[str, Any]) -> Geometry:
    return Geometry.of(SIZE, options.get("infer_frames", 24))


def latents(denoiser: Denoiser, options: dict[str, Any]) -> Tensor:
    """A run over two clips and more, 16 F h w."""
    given = conditions(denoiser.geometry, options.get("num_speakers", 1), options.get("pose", False))
    blocks = rollout(given, denoiser, num_blocks=options.get("num_blocks", 5), seed=options.get("seed", 1))
    return torch.cat(list(blocks), dim=1)


def local_latents(options: dict[str, Any]) -> Tensor:
    """As one device makes them."""
    return _local_latents(tuple(sorted(options.items())))


@functools.cache
def _local_latents(options: tuple[tuple[str, Any], ...]) -> Tensor:
    given = dict(options)
    model = filler(given.get("format"))(lambda name: True).fuse()
    denoiser = LocalDenoiser(model, geometry_of(given), schedule(given), ring_dtype=given.get("ring_dtype"))
    return latents(denoiser, given)


def fill(select: Callable[[str], bool]) -> StreamingTransformer:
    """The selected tensors of the same model, as a loader gives them."""
    with torch.device("meta"):
        model = StreamingTransformer(CONFIG).requires_grad_(False)
    selected = {name: tensor.clone() for name, tensor in weights().items() if select(name)}
    model.load_state_dict(selected, strict=False, assign=True)
    return model


def filler(format: torch.dtype | None) -> Callable[[Callable[[str], bool]], StreamingTransformer]:
    """fill, or the same of a model with QUANTISABLE's sides in 8 bits."""
    return fill if format is None else functools.partial(fill_quantised, format=format)


def fill_quantised(select: Callable[[str], bool], format: torch.dtype) -> StreamingTransformer:
    """The selected tensors of a model in 8 bits."""
    with torch.device("meta"):
        model = StreamingTransformer(QUANTISABLE).requires_grad_(False)
    quantiser = Quantiser(format)
    for name, tensor in weights(QUANTISABLE).items():
        if select(name):
            placed = quantiser.place(name, tensor)
            install(model, name, tensor.clone() if placed is None else placed.data)
    quantiser.install(model)
    return model


class Dismissed(Exception):
    """As a message: there is no more to do. Real ranks assist as long as they live."""


class DismissablePost(MessageChannel):
    """Raises Dismissed when it comes."""

    def receive(self, rank: int) -> Any:
        message = super().receive(rank)
        if isinstance(message, Dismissed):
            raise message
        return message


def help_out(assist: Callable[..., None], group: Group, *arguments: Any) -> None:
    """Assist until rank 0 dismisses this rank."""
    with suppress(Dismissed):
        assist(replace(group, post=DismissablePost(group.meter.sent)), *arguments)


def dismiss(conductor: Coordinator) -> None:
    """Let the other ranks go."""
    for rank in range(1, conductor.layout.world_size):
        conductor.group.post.send(Dismissed(), rank)
    conductor.settle()


def lead_or_assist(
    group: Group,
    assist: Callable[..., None] = assist,
    pieces: CompiledPieces | None = None,
    format: torch.dtype | None = None,
) -> Coordinator | None:
    """Rank 0's conductor, with its share of the model; the others assist until dismissed, and get None."""
    model = share(filler(format), group)
    if group.rank:
        assert model is not None
        help_out(assist, group, model, FLOAT, pieces or CompiledPieces())
        return None
    return Coordinator(group, model, FLOAT, pieces or CompiledPieces())
