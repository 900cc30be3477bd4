"""Lists of turns: who speaks from when to when in a recording, as diarisation and people write them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from avatar.errors import BadInput
from avatar.media.files import check_file, display_name, minutes
from avatar.validation import shown

MOST_BYTES = 2**20
LONGEST_LABEL = 60
HOW_TO_WRITE = (
    "Each line holds start, end and speaker: 0.0 2.5 Anna. Times are seconds, m:ss or h:mm:ss."
    " RTTM is read, too."
)
_COMMENTS = ("#", ";")
_HEADINGS = ("start", "begin", "from")
_RTTM = "SPEAKER"
_SEPARATED = re.compile(r"\s*[,;\t]\s*")


@dataclass(frozen=True)
class Turn:
    """A stretch of a recording in which one speaker is heard, in seconds. line: of the list, from 1."""

    start_s: float
    end_s: float
    speaker: str
    line: int


def read_turns(path: Path, name: str | None = None) -> tuple[Turn, ...]:
    """The turns of a file, in its order. Raises: BadInput naming the first line that is not understood."""
    name = display_name(path, name)
    check_file(path, name, MOST_BYTES, "list of turns")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise BadInput(f"{name} cannot be read as text in UTF-8.", HOW_TO_WRITE) from error
    return parse_turns(text, name)


def parse_turns(text: str, name: str) -> tuple[Turn, ...]:
    """See read_turns. Separated by tabs, commas, semicolons or blanks; # begins a comment."""
    turns: list[Turn] = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith(_COMMENTS) or (not turns and line.lower().startswith(_HEADINGS)):
            continue
        turns.append(_turn(line, number, name))
    if not turns:
        raise BadInput(f"{name} holds no turns.", HOW_TO_WRITE)
    return tuple(turns)


def check_within(turns: Sequence[Turn], seconds: float, name: str, recording: str) -> None:
    """Refuse turns that begin after the recording's end. Raises: BadInput naming the line."""
    for turn in turns:
        if turn.start_s >= seconds:
            raise BadInput(
                f"{name}, line {turn.line}: it begins at {minutes(turn.start_s)}, but {recording} lasts"
                f" {minutes(seconds)}.",
                "Take the list that belongs to this recording, with times in seconds.",
            )


def _turn(line: str, number: int, name: str) -> Turn:
    where = f"{name}, line {number}"
    words = line.split()
    is_rttm = words[0] == _RTTM and len(words) >= 8
    try:
        if is_rttm:  # SPEAKER file channel start duration <NA> <NA> speaker
            start, end, speaker = float(words[3]), float(words[3]) + float(words[4]), words[7]
        else:
            parts = _SEPARATED.split(line, 2) if len(_SEPARATED.split(line)) >= 3 else line.split(None, 2)
            first, second, speaker = parts
            start, end, speaker = _seconds(first), _seconds(second), speaker.strip().strip('"')
        if not (math.isfinite(start) and math.isfinite(end) and start >= 0 and speaker):
            raise ValueError("no times")
    except ValueError as error:
        raise BadInput(f"{where}: {shown(line)} is not start, end and speaker.", HOW_TO_WRITE) from error
    if end <= start:
        raise BadInput(f"{where}: the turn ends before it begins, at {end:g} s.", HOW_TO_WRITE)
    if len(speaker) > LONGEST_LABEL or not speaker.isprintable():
        raise BadInput(f"{where}: {shown(speaker)} is no name of a speaker.", HOW_TO_WRITE)
    return Turn(start, end, speaker, number)


def _seconds(word: str) -> float:
    """ "2.5", "1:02.5" or "1:02:03" in seconds. Raises: ValueError."""
    total = 0.0
    parts = word.strip().split(":")
    if len(parts) > 3:
        raise ValueError(word)
    for part in parts:
        total = 60 * total + float(part)
    return total
