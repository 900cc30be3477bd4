"""`join`: join the parts of one long video into one file, without re-encoding."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from avatar.commands.output import write_json
from avatar.media.join import join_parts


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "join", help="join the parts of a long video", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("parts", type=Path, nargs="+", metavar="PART.mp4", help="all parts, in their order")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE.mp4", help="the whole video"
    )
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Join, and print the video's path."""
    num_frames = join_parts(args.parts, args.output)
    if args.json:
        write_json({"event": "joined", "video": args.output, "num_frames": num_frames})
    else:
        sys.stdout.write(f"{args.output}\n")
    return 0
