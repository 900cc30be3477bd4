"""`worker`: one rank of an engine that torchrun starts, on one node or several."""

from __future__ import annotations

import argparse
import logging
from dataclasses import fields
from typing import Any

from avatar.commands.setting_flags import add_checkpoint, add_preset, chosen_preset, given_settings
from avatar.errors import BadInput
from avatar.hardware.inventory import probe
from avatar.runtime.torchrun_client import SECRET, Address, secret
from avatar.settings import Parallel

PORT = 7861
OF_RANKS = ("weight_dtype", "text_encoder", "lora", "sample_steps", *(one.name for one in fields(Parallel)))
"""What ranks load, and how they share it."""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "worker",
        help="a rank of an engine, started by torchrun",
        description=f"{__doc__} Rank 0 waits for `app.py --attach` or `generate --attach`, with the same "
        f"${SECRET} on both sides.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--listen",
        default=f"127.0.0.1:{PORT}",
        metavar="HOST:PORT",
        help=f"where rank 0 can be reached (127.0.0.1:{PORT})",
    )
    parser.add_argument("--roles", default="avatar.distributed.roles", help=argparse.SUPPRESS)
    add_checkpoint(parser)
    add_preset(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until torchrun ends this process."""
    if args.preset == "auto":
        raise BadInput("All ranks need the same preset.", "Name it with --preset.")
    for name in given_settings(args):
        if name not in OF_RANKS:
            raise BadInput(
                f"{name} belongs to a run, and ranks get it from whoever attaches.",
                f"Leave {name} out here, and name it where the video is asked for.",
            )
    preset = chosen_preset(args, probe(args.ckpt_dir))
    if preset.engine != "diffusion":
        raise BadInput(f"Preset {preset.name!r} has no ranks.", "Choose one of the diffusion engine's.")
    logging.getLogger().setLevel(logging.INFO)
    from avatar.distributed.torchrun import serve

    serve(preset, args.ckpt_dir, args.roles, Address.parse(args.listen), secret())
    return 0
