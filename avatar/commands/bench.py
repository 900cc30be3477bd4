"""`bench`: what a machine does with a preset, before or after downloading the weights."""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from avatar.checkpoint_places import Checkpoint
from avatar.commands.output import write_json
from avatar.commands.settings import add_checkpoint, add_preset, chosen_preset
from avatar.errors import BadInput
from avatar.memory.fit import require
from avatar.memory.inventory import Inventory, probe
from avatar.memory.items import CUDA_CONTEXT_BYTES
from avatar.memory.plan import GIB
from avatar.parallel.layout import Layout
from avatar.preset import Preset


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "bench", help="time a preset on this machine", description=__doc__, allow_abbrev=False
    )
    parser.add_argument(
        "--random_weights", action="store_true", help="make weights on the device: no checkpoint needed"
    )
    parser.add_argument(
        "--blocks", type=int, default=16, metavar="N", help="blocks of 12 frames to generate (16)"
    )
    parser.add_argument(
        "--vram",
        type=float,
        metavar="GIB",
        help="take no more of the GPU's memory than this, to see what a smaller card would do",
    )
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write the figures there as well")
    add_checkpoint(parser)
    add_preset(parser)
    parser.set_defaults(run=run, json=True)


def run(args: argparse.Namespace) -> int:
    """Print the figures as JSON."""
    if args.random_weights and args.ckpt_dir:
        raise BadInput("With --random_weights no checkpoint is read.", "Leave out one of the two.")
    if args.output and not args.output.absolute().parent.is_dir():
        raise BadInput(f"There is no folder for {args.output.name}.", "Make it, or choose another one.")
    inventory = probe(args.ckpt_dir)
    if args.random_weights:
        inventory = replace(inventory, checkpoint=Checkpoint(complete=True))
    preset = chosen_preset(args, inventory)
    if preset.engine != "diffusion":
        raise BadInput(
            f"Preset {preset.name!r} has no model to time.", "Choose one of the diffusion engine's."
        )
    if args.vram is not None:
        inventory = _cut(inventory, args.vram)
    require(preset, inventory)
    figures = {"random_weights": args.random_weights, "vram_gib": args.vram, **_figures(args, preset)}
    if args.output:
        args.output.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    write_json(figures)
    return 0


def _cut(inventory: Inventory, vram_gib: float) -> Inventory:
    """The machine with no more memory on each GPU. Raises: BadInput for a size that is none."""
    if not 0 < vram_gib < math.inf:
        raise BadInput(f"--vram is {vram_gib:g}.", "Give the card's memory in GiB, for example 24.")
    limit = round(vram_gib * GIB)

    def least(num_bytes: int | None) -> int | None:
        return None if num_bytes is None else min(num_bytes, limit)

    gpus = (
        replace(gpu, total_bytes=least(gpu.total_bytes), free_bytes=least(gpu.free_bytes))
        for gpu in inventory.gpus
    )
    return replace(inventory, gpus=tuple(gpus))


def _figures(args: argparse.Namespace, preset: Preset) -> dict[str, Any]:
    if Layout.of(preset).world_size > 1:
        from avatar.bench.ranks import bench_ranks

        if args.vram is not None:
            raise BadInput("--vram makes one GPU smaller; this layout takes several.", "Leave it out.")
        return bench_ranks(preset, args.ckpt_dir, random=args.random_weights, num_blocks=args.blocks)
    from avatar.bench.measure import take_no_more
    from avatar.bench.random_parts import random_parts
    from avatar.bench.run import bench
    from avatar.diffusion.files import find_files
    from avatar.diffusion.parts import Parts, best_device
    from avatar.diffusion.room import placement_on

    device = best_device()
    if args.vram is not None:
        take_no_more(device, round(args.vram * GIB) - CUDA_CONTEXT_BYTES)
    placement = placement_on(device, preset, weights=args.ckpt_dir)
    if args.random_weights:
        return bench(preset, random_parts(preset, placement), num_blocks=args.blocks)
    with tempfile.TemporaryDirectory(prefix="avatar-bench-") as work:
        files = find_files(preset, args.ckpt_dir, Path(work))
        parts = Parts.load(preset.memory, files, placement=placement)
        return bench(preset, parts, num_blocks=args.blocks)
