"""Several speakers in a comparison: the same in every video, their voices kept for measuring."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from avatar.long.job import LONGEST
from avatar.media.atomic import disk_error
from avatar.media.readers import Reader
from avatar.media.speaker_choice import STEREO, AskedSpeakers
from avatar.media.speaker_intake import write_voices
from avatar.media.speaker_places import place_speakers
from avatar.preview.face_finder import Finder
from avatar.request import Speaker
from avatar.runtime.fingerprint import file_digest
from avatar.settings import Picture


def voiced(
    asked: AskedSpeakers, image: Path, recording: Path | None, picture: Picture, work: Path
) -> tuple[Speaker, ...]:
    """The speakers as a run has them, with their voices in work, which is there.

    recording: the one that is split, if it is. Raises: BadInput, for whatever cannot be used.
    """
    reader = Reader()
    pixels = reader.portrait(image, limits=LONGEST).pixels
    placed = place_speakers(
        asked, pixels, picture, Finder(), image.name, engine="preview", reader=reader, limits=LONGEST
    )
    name = asked.name if recording is None else recording.name
    try:
        with ExitStack() as undo:
            said = write_voices(placed, recording, name, work, reader=reader, limits=LONGEST, undo=undo)
            undo.pop_all()
    except OSError as error:
        raise disk_error(error) from error
    return said.speakers


def made_from(asked: AskedSpeakers) -> list[Any]:
    """What videos of these speakers are made from, for a digest. Raises: OSError."""
    split = "" if asked.split in ("", STEREO) else [list(map(str, asked.labels)), repr(asked.turns)]
    each = [
        [
            one.face,
            one.label,
            one.mask,
            one.painted and file_digest(one.painted),
            None if one.text else one.audio and file_digest(one.audio),
        ]
        for one in asked.speakers
    ]
    return [asked.split and (asked.split if asked.split == STEREO else "split"), split, each, asked.digest]
