"""`voices`: who can speak a text here, and what each needs first."""

from __future__ import annotations

import argparse
from typing import Any

from rich.table import Table

from avatar.commands.output import console, write_json
from avatar.speech.catalogue import Catalogue
from avatar.speech.voices import Voice


def add(commands: Any) -> None:
    parser = commands.add_parser("voices", help="list the voices", description=__doc__, allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print every voice; nothing is loaded or downloaded."""
    voices = Catalogue().voices()
    if args.json:
        write_json(voices)
        return 0
    table = Table("voice", "language", "who", "here")
    for voice in voices:
        table.add_row(voice.name, voice.language or "any", voice.about, _here(voice))
    console().print(table)
    return 0


def _here(voice: Voice) -> str:
    if voice.missing:
        return voice.missing
    return f"its first use downloads {voice.fetch_mb} MB" if voice.fetch_mb else "yes"
