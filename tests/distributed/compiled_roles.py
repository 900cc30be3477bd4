"""The engine's own roles with everything compiled, as on a GPU, on ranks that are CPUs."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from avatar.distributed import rank0_pipeline, roles
from avatar.distributed.rendezvous import RankContext
from avatar.model.compile import compiled
from avatar.model.vae import vae
from avatar.pipeline import pipeline
from avatar.pipeline.decode import StreamingDecoder
from avatar.pipeline.layer_stack import CompiledPieces
from avatar.preset import Preset

BACKEND = "aot_eager"  # traces like the real one, and needs no C++ compiler
# It takes a convolution of one frame to give another layout than the CPU's does, and leaves out a copy that
# the attention behind it needs. This one traces, and leaves nothing out.
DECODER_BACKEND = "eager"


def compile_all() -> None:
    torch.set_num_threads(1)
    roles.pieces_of = rank0_pipeline.pieces_of = lambda preset, device: CompiledPieces.compiled(
        backend=BACKEND
    )
    vae.compiled = partial(compiled, backend=DECODER_BACKEND)
    pipeline.StreamingDecoder = Compiled


class Compiled(StreamingDecoder):
    def __init__(self, model: vae.VideoVAE, compile: bool = False) -> None:
        super().__init__(model, compile=True)


def lead(preset: Preset, weights: Path | None, context: RankContext) -> pipeline.DiffusionPipeline:
    compile_all()
    return roles.lead(preset, weights, context)


def assist(preset: Preset, weights: Path | None, context: RankContext) -> None:
    compile_all()
    roles.assist(preset, weights, context)
