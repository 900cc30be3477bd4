"""The engine's own roles, on ranks whose memory is imagined: files say where it runs out, and when.

"1-layer-5", holding "01", in the folder $AVATAR_TEST_FULL: on rank 1, at its fifth layer, in the second group
of ranks that comes so far.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from avatar.distributed import roles
from avatar.distributed.fsdp import LayerGatherer
from avatar.distributed.process_groups import Group
from avatar.distributed.rendezvous import RankContext
from avatar.distributed.ulysses import SharedStack
from avatar.geometry import Size
from avatar.model.text_encoder import TextWeights
from avatar.pipeline.decode import StreamingDecoder
from avatar.pipeline.layer_stack import LayerStack
from avatar.pipeline.pipeline import DiffusionPipeline
from avatar.planning import fallback_ladder
from avatar.preset import Preset

FOLDER = "AVATAR_TEST_FULL"
LOW_SIZE = Size(64, 64)  # the ladder's own is large for a CPU
CALLS: dict[str, tuple[type, str]] = {
    "text": (TextWeights, "load"),  # of all ranks together
    "prompt": (TextWeights, "streamed"),
    "rings": (LayerStack, "begin"),
    "prefill": (LayerStack, "prefill"),
    "layer": (LayerStack, "_layer"),
    "exchange": (SharedStack, "_exchange"),  # its peers are in it by then
    "fetch": (LayerGatherer, "_fetch"),
    "take": (Group, "take"),
    "decode": (StreamingDecoder, "decode"),
}


def limited(call: Callable[..., Any], place: str) -> Callable[..., Any]:
    """The same, but out of memory where a file says so."""
    numbers = itertools.count(1)

    @functools.wraps(call)
    def ask(*arguments: Any, **more: Any) -> Any:
        file = Path(os.environ[FOLDER], f"{place}-{next(numbers)}")
        if file.exists() and (turns := file.read_text()):
            file.write_text(turns[1:])
            if turns[0] == "1":
                raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {file.name}.")
        return call(*arguments, **more)

    return ask


def shrink(rank: int) -> None:
    fallback_ladder.LOW_SIZE = LOW_SIZE
    for what, (owner, name) in CALLS.items():
        setattr(owner, name, limited(getattr(owner, name), f"{rank}-{what}"))


def lead(preset: Preset, weights: Path | None, context: RankContext) -> DiffusionPipeline:
    shrink(context.rank)
    return roles.lead(preset, weights, context)


def assist(preset: Preset, weights: Path | None, context: RankContext) -> None:
    shrink(context.rank)
    roles.assist(preset, weights, context)
