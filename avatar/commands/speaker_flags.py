"""Flags for several speakers: --speaker for each face, --split for one recording with all voices."""

from __future__ import annotations

import argparse

from avatar.media.speaker_choice import AskedSpeakers, asked_speakers, speaker_of_flag


def add_speakers(parser: argparse.ArgumentParser) -> None:
    """Add --speaker and --split."""
    group = parser.add_argument_group(
        "several speakers", "up to four faces of one portrait, each with its own voice"
    )
    group.add_argument(
        "--speaker",
        action="append",
        default=[],
        metavar="face=N|X,Y[,audio=FILE]",
        help="a face and its recording; without one it listens. May be given up to four times. With --split:"
        " label=NAME instead of audio. mask=LEFT,TOP,RIGHT,BOTTOM: where the diffusion engine lets the voice"
        " act, in fractions of the picture",
    )
    group.add_argument(
        "--split",
        metavar="stereo|FILE",
        help="how the voices in --audio are told apart: left and right channel, or a list of turns, lines of"
        " start, end and speaker (RTTM is read, too). They go to the faces from left to right, or as the"
        " labels of --speaker say",
    )


def chosen_speakers(args: argparse.Namespace) -> AskedSpeakers | None:
    """Who speaks, by the flags; None where they are silent about it. Raises: BadInput."""
    speakers = [speaker_of_flag(text) for text in args.speaker]
    return asked_speakers(speakers, args.split, recording=args.audio is not None)
