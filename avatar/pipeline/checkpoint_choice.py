"""Choose the checkpoint for a preset."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from avatar.checkpoints.lora_files import parse_loras
from avatar.errors import BadInput
from avatar.model.weights.checkpoint import CheckpointFiles, open_checkpoint
from avatar.planning.plan import gib
from avatar.planning.planner import TINY_BYTES
from avatar.preset import Preset

TINY_FOLDER = "self-test"  # in the run's work folder


def find_files(preset: Preset, weights: Path | None, work: Path) -> CheckpointFiles:
    """The checkpoint for a preset; the self-test uses a toy one, built in work unless weights is given.

    Raises: WeightsMissing; BadInput for a missing LoRA, or a given checkpoint that is too large for the
    self-test.
    """
    loras = parse_loras(preset.memory.lora)
    if preset.requires.weights != "tiny":
        return replace(open_checkpoint(weights), loras=loras)
    if weights is None:
        from avatar.model.weights.tiny import build_tiny_checkpoint  # slow to import, only needed here

        weights = build_tiny_checkpoint(work / TINY_FOLDER)
    files = open_checkpoint(weights)
    num_bytes = sum(shard.stat().st_size for shard in files.shards)
    if num_bytes > TINY_BYTES:
        raise BadInput(
            f"The self-test runs a toy model; these weights take {gib(num_bytes)}.",
            "Leave out --ckpt_dir, or choose another preset.",
        )
    return replace(files, loras=loras)
