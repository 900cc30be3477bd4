"""`compose`: captions, music, intro, outro, logo and pictures for a finished video; also as WebM or GIF."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from avatar.commands.output import write_json
from avatar.compose.clips import is_picture
from avatar.compose.compose import CORNERS, Composition, compose, keep_captions
from avatar.errors import BadInput
from avatar.media.files import check_file, display_name
from avatar.runtime.rescued_files import kept_outside
from avatar.runtime.scratch import Scratch

_LARGEST_TEXT = 2**20
# A detail's flag, its field of Composition, and the flags of what it is a detail of.
DETAILS: dict[str, tuple[str, tuple[str, ...]]] = {
    "font": ("font", ("captions", "text_file")),
    "music_db": ("music_db", ("music",)),
    "duck_db": ("duck_db", ("music",)),
    "still_s": ("still_s", ("intro", "outro")),
    "logo_corner": ("logo_corner", ("logo",)),
    "logo_width": ("logo_share", ("logo",)),
    "picture_corner": ("picture_corner", ("picture",)),
    "picture_width": ("picture_share", ("picture",)),
}


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "compose", help="add captions, music, an intro, a logo", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("video", type=Path, metavar="VIDEO", help="the finished video")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="what to make: .mp4, .webm or .gif"
    )
    words = parser.add_argument_group("captions")
    either = words.add_mutually_exclusive_group()
    either.add_argument("--captions", type=Path, metavar="FILE", help="an .srt or .vtt file")
    either.add_argument(
        "--text_file", type=Path, metavar="FILE.txt", help="what is said; spread over the speech by length"
    )
    words.add_argument("--captions_out", type=Path, metavar="FILE.srt", help="write the captions there, too")
    words.add_argument("--font", type=Path, metavar="FILE", help="a .ttf, .otf or .ttc file (one that fits)")
    sound = parser.add_argument_group("music")
    sound.add_argument("--music", type=Path, metavar="FILE", help="looped or cut to the video's length")
    sound.add_argument("--music_db", type=float, metavar="DB", help="its level (-16)")
    sound.add_argument(
        "--duck_db", type=float, metavar="DB", help="reduction under speech, in dB (-8)"
    )
    ends = parser.add_argument_group("beginning and end")
    ends.add_argument("--intro", type=Path, metavar="FILE", help="a video or picture that comes before")
    ends.add_argument("--outro", type=Path, metavar="FILE", help="a video or picture that comes after")
    ends.add_argument("--still_s", type=float, metavar="S", help="how long a picture lasts (3)")
    over = parser.add_argument_group("in the corners")
    for name, corner, share, what in (
        ("logo", "top-right", 0.12, "a picture, transparency is kept"),
        ("picture", "bottom-right", 0.3, "a picture or video within the video"),
    ):
        over.add_argument(f"--{name}", type=Path, metavar="FILE", help=what)
        over.add_argument(f"--{name}_corner", choices=CORNERS, help=f"({corner})")
        over.add_argument(
            f"--{name}_width", type=float, metavar="X", help=f"share of the width ({share})"
        )
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compose, and print the video's path."""
    _refuse_unused(args)
    asked = Composition(
        video=args.video,
        captions=args.captions,
        text=None if args.text_file is None else _text(args.text_file),
        font=args.font,
        music=args.music,
        intro=args.intro,
        outro=args.outro,
        logo=args.logo,
        picture=args.picture,
    )
    given = {field: getattr(args, name) for name, (field, _) in DETAILS.items()}
    asked = replace(asked, **{field: value for field, value in given.items() if value is not None})
    if args.captions_out is not None:
        _check_captions_out(args)
    with Scratch() as work, kept_outside(args.output):
        cues = compose(asked, args.output, work)
    if args.captions_out is not None:
        try:
            keep_captions(cues, args.captions_out)
        except OSError as error:
            raise BadInput(
                f"{display_name(args.captions_out)} cannot be written ({error.strerror}).",
                f"The video is made: {display_name(args.output)}.",
            ) from error
    if args.json:
        write_json({"event": "composed", "video": args.output, "captions": len(cues)})
    else:
        sys.stdout.write(f"{args.output}\n")
    return 0


def _refuse_unused(args: argparse.Namespace) -> None:
    """Raises: BadInput for a detail of what is not there, and for music where there is no sound."""
    for name, (_, wholes) in DETAILS.items():
        if getattr(args, name) is not None and not any(getattr(args, whole) for whole in wholes):
            flags = " or ".join(f"--{whole}" for whole in wholes)
            raise BadInput(f"--{name} is given without {flags}.", f"Give {flags}, or leave --{name} out.")
    if args.still_s is not None and not any(path and is_picture(path) for path in (args.intro, args.outro)):
        raise BadInput("--still_s is for pictures; intro and outro are videos.", "Leave --still_s out.")
    if args.music is not None and args.output.suffix.lower() == ".gif":
        raise BadInput("A GIF has no sound, so it can have no music.", "Choose .mp4 or .webm, or no --music.")


def _check_captions_out(args: argparse.Namespace) -> None:
    """Raises: BadInput for a path where captions cannot or must not be written."""
    path: Path = args.captions_out
    if args.captions is None and args.text_file is None:
        raise BadInput("There are no captions to write.", "Give --captions or --text_file.")
    if path.suffix.lower() != ".srt" or not path.absolute().parent.is_dir():
        raise BadInput(
            f"Captions cannot be written to {display_name(path)}.", "Name an .srt file in a folder."
        )
    if path.exists():
        raise BadInput(f"{display_name(path)} is there already.", "Choose another name.")


def _text(path: Path) -> str:
    name = display_name(path)
    check_file(path, name, _LARGEST_TEXT, "text")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{name} is not in UTF-8.", "Save it as UTF-8, and try again.") from error
