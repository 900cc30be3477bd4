"""`speak`: a text to a sound file, to listen to before it is animated."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from avatar.commands.output import write_json
from avatar.commands.voice_flags import add_speaking, script_of
from avatar.errors import AvatarError, BadInput
from avatar.media import atomic
from avatar.media.files import display_name
from avatar.paths import exists, is_dir
from avatar.runtime.scratch import Scratch, keep
from avatar.speech.catalogue import Catalogue
from avatar.speech.narration import Narrator


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "speak", help="make a sound file from a text", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.wav", help="the sound file")
    parser.add_argument("--json", action="store_true", help="each sentence as a JSON line")
    add_speaking(parser, without=("captions",))
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check everything, then speak; existing files are not replaced."""
    script = script_of(args)
    if script is None:
        raise BadInput("There is no text.", "Give --text or --text_file.")
    output: Path = args.output
    if output.suffix.lower() != ".wav" or exists(output) or not is_dir(output.parent):
        raise BadInput(
            f"{output.name} cannot be the output.",
            "Name a new file that ends in .wav, in a folder that is there.",
        )
    narrator = Narrator.of(script, Catalogue())
    with Scratch() as folder:
        spoken = folder / "spoken.wav"
        for said in narrator.write(spoken):
            if args.json:
                write_json({"event": "said", "text": said.text, "start_s": said.start_s})
        try:
            atomic.copy(spoken, output)
        except OSError as error:
            kept = keep(spoken, output.name)
            raise AvatarError(
                f"{display_name(output)} cannot be written ({error.strerror}).",
                f"The complete sound is in {kept}. Make room or choose another output.",
            ) from error
    if not args.json:
        sys.stdout.write(f"{output}\n")
    return 0
