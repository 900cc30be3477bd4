"""`bench`: what a card does with a preset, before or after downloading the weights."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from avatar.commands.output import write_json
from avatar.commands.settings import FLAGS, add_checkpoint, add_preset
from avatar.errors import BadInput
from avatar.preset import load_preset


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
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write the figures there as well")
    add_checkpoint(parser)
    add_preset(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the figures as JSON."""
    from avatar.bench import bench, random_parts
    from avatar.diffusion.parts import Parts

    given = {name: getattr(args, name) for name in FLAGS if getattr(args, name) is not None}
    preset = load_preset(args.preset).with_settings(**given)
    if preset.engine != "diffusion":
        raise BadInput(
            f"Preset {preset.name!r} has no model to time.", "Choose one of the diffusion engine's."
        )
    parts = random_parts(preset) if args.random_weights else Parts.load(preset.memory, args.ckpt_dir)
    figures = bench(preset, parts, num_blocks=args.blocks)
    if args.output:
        args.output.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    write_json(figures)
    return 0
