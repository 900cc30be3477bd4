"""The flag --upscale_with: a program of the user's own enlarges finished videos."""

from __future__ import annotations

import argparse

from avatar.errors import BadInput
from avatar.runtime.external_program import read_command


def add_upscale_with(parser: argparse.ArgumentParser) -> None:
    """Add the flag; only the command line has it, since it runs programs."""
    parser.add_argument(
        "--upscale_with",
        metavar="COMMAND",
        help='a program that enlarges the finished video to 1080p, as "PROGRAM {input} {output}"; {width} and'
        " {height} are filled in as well, and no shell is involved",
    )


def upscale_words(args: argparse.Namespace) -> tuple[str, ...]:
    """The words of the command, () without one. Raises: BadInput."""
    if args.upscale_with is None:
        return ()
    if getattr(args, "upscale", None) not in (None, "1080p"):
        raise BadInput(f"upscale is {args.upscale}, and a command for it is given.", "Leave one of them out.")
    return read_command(args.upscale_with)
