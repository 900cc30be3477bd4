"""Flags for speaking a text, shared by the commands that speak."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from avatar.commands.setting_flags import add_declared
from avatar.errors import BadInput
from avatar.settings import SPEAKING, TYPED
from avatar.speech.catalogue import speaking
from avatar.speech.narration import Script, read_text


def add_speaking(parser: argparse.ArgumentParser, without: tuple[str, ...] = ()) -> None:
    """Add --text, --text_file and one flag per entry of SPEAKING, except those in `without`."""
    group = parser.add_argument_group(TYPED, "instead of a recording")
    either = group.add_mutually_exclusive_group()
    either.add_argument("--text", metavar="TEXT", help="what is said")
    either.add_argument(
        "--text_file", type=Path, metavar="FILE.txt", help="a file with the text, in UTF-8; -: standard input"
    )
    for name, one in SPEAKING.items():
        if name not in without:
            add_declared(group, one)


def script_of(args: argparse.Namespace, *, has_texts: bool = False) -> Script | None:
    """The text to speak by the flags, with its options; None without a text.

    has_texts: whether speakers have texts, which the options are for as well. Raises: BadInput for an
    unreadable file, a wrong value, or options without a text.
    """
    given: dict[str, Any] = {name: getattr(args, name, None) for name in SPEAKING}
    if args.text is None and args.text_file is None:
        if has_texts:
            return None
        for name, value in given.items():
            if value is not None:
                raise BadInput(f"{name} is for a text.", "Give --text or --text_file, or leave it out.")
        return None
    text = args.text if args.text is not None else read_text(args.text_file)
    return Script(text, speaking(**given))
