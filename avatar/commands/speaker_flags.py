"""Flags for several speakers: --speaker for each face, --split for one recording or text with all voices."""

from __future__ import annotations

import argparse
from typing import Any

from avatar.commands.voice_flags import script_of
from avatar.media.speaker_choice import NAMES, AskedSpeakers, asked_speakers
from avatar.media.speaker_words import speaker_of_flag
from avatar.settings import SPEAKING
from avatar.speech.catalogue import speaking
from avatar.speech.narration import Script


def add_speakers(parser: argparse.ArgumentParser) -> None:
    """Add --speaker and --split."""
    group = parser.add_argument_group(
        "several speakers", "up to four faces of one portrait, each with its own voice"
    )
    group.add_argument(
        "--speaker",
        action="append",
        default=[],
        metavar="face=N|X,Y[,audio=FILE|,text=TEXT][,mask=FILE]",
        help="a face, and its recording or what it says; without either it listens. Up to four times."
        " Texts are spoken one after another, each by its voice=NAME at its speed=X. With --split: label=NAME"
        " instead. mask=FILE: a picture like the portrait, white where the diffusion engine lets the voice"
        " act; or mask=LEFT,TOP,RIGHT,BOTTOM, in fractions of it. A mask without face says which one speaks",
    )
    group.add_argument(
        "--split",
        metavar="stereo|FILE|names",
        help="how the voices in --audio are told apart: left and right channel, or a list of turns, lines of"
        " start, end and speaker (RTTM is read, too). names: those in --text or --text_file, whose lines"
        " begin with a name (Anna: Good morning.). They go to the faces from left to right, or as the labels"
        " of --speaker say",
    )


def chosen_speech(args: argparse.Namespace) -> tuple[Script | None, AskedSpeakers | None]:
    """The text that one voice speaks, and who speaks where several faces do; None for what was not given.

    Raises: BadInput.
    """
    speakers = [speaker_of_flag(text) for text in args.speaker]
    script = script_of(args, has_texts=any(one.text for one in speakers))
    given: dict[str, Any] = {name: getattr(args, name, None) for name in SPEAKING}
    asked = asked_speakers(
        speakers,
        args.split,
        recording=args.audio is not None,
        text="" if script is None else script.text,
        speaking=speaking(**given),
    )
    return None if asked is not None and asked.split == NAMES else script, asked
