"""Captions with start and end times, from SubRip and WebVTT files or from a text spread over the speech."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from avatar.errors import BadInput
from avatar.media.files import check_file, display_name

SUFFIXES = (".srt", ".vtt")
_LARGEST_BYTES = 8 * 2**20
_TIME = r"(?:(\d+):)?(\d{1,2}):(\d{1,2})[,.](\d{1,3})"
_SPAN = re.compile(rf"^\s*{_TIME}\s*-->\s*{_TIME}")
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>|\{\\[^{}]*\}|<\d[^<>]*>")
_SENTENCE = re.compile(r"[^.!?。！？…]+[.!?。！？…]*[\"'”’»)]*\s*")
LONGEST_CUE = 84  # letters: two lines
_WIDE = re.compile(r"[\u1100-\u11ff\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\uff00-\uff60]")


@dataclass(frozen=True)
class Cue:
    """A text shown from start_s to end_s, in seconds."""

    start_s: float
    end_s: float
    text: str


def read_captions(path: Path) -> list[Cue]:
    """The cues of an .srt or .vtt file, in order of time. Raises: BadInput."""
    name = display_name(path)
    check_file(path, name, _LARGEST_BYTES, "caption")
    data = path.read_bytes()
    try:
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{name} is not in UTF-8.", "Save it as UTF-8, and try again.") from error
    cues = parse(text)
    if not cues:
        raise BadInput(f"{name} holds no captions.", "Give a SubRip (.srt) or WebVTT (.vtt) file.")
    return cues


def parse(text: str) -> list[Cue]:
    """The cues of SubRip or WebVTT text; headers, notes and styles are left out."""
    cues = []
    for block in re.split(r"\n[ \t]*\n", text.replace("\r\n", "\n").replace("\r", "\n")):
        lines = block.strip("\n").split("\n")
        at = next((number for number, line in enumerate(lines[:2]) if _SPAN.match(line)), None)
        if at is None:
            continue
        found = _SPAN.match(lines[at])
        assert found is not None
        start_s, end_s = _seconds(found.groups()[:4]), _seconds(found.groups()[4:])
        words = html.unescape(_TAG.sub("", "\n".join(lines[at + 1 :]))).strip()
        if words and end_s > start_s:
            cues.append(Cue(start_s, end_s, words))
    return sorted(cues, key=lambda cue: (cue.start_s, cue.end_s))


def spread(text: str, spoken: Sequence[tuple[float, float]]) -> list[Cue]:
    """Split a text into cues and distribute them over the speech by their length.

    spoken: (start, end) seconds of each stretch of speech, in order. The times are estimates, without speech
    recognition.
    """
    pieces = [piece for sentence in _SENTENCE.findall(text) or [text] for piece in _pieces(sentence)]
    if not pieces or not spoken:
        return []
    total_s = sum(end - start for start, end in spoken)
    weights = [_weight(piece) for piece in pieces]
    cues, done = [], 0.0
    for piece, weight in zip(pieces, weights):
        first, last = (share / sum(weights) * total_s for share in (done, done + weight))
        cues.append(Cue(_at(first, spoken, opens=True), _at(last, spoken, opens=False), piece))
        done += weight
    return cues


def write_srt(cues: Sequence[Cue]) -> str:
    """The cues as SubRip text."""
    blocks = (
        f"{number}\n{_clock(cue.start_s)} --> {_clock(cue.end_s)}\n{cue.text}\n"
        for number, cue in enumerate(cues, 1)
    )
    return "\n".join(blocks)


def _clock(seconds: float) -> str:
    thousandths = round(seconds * 1000)
    whole, rest = divmod(thousandths, 1000)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d},{rest:03d}"


def _seconds(parts: Sequence[str | None]) -> float:
    hours, minutes, seconds, fraction = parts
    return int(hours or 0) * 3600 + int(minutes or 0) * 60 + int(seconds or 0) + float(f"0.{fraction}")


def _weight(text: str) -> int:
    """Estimated speaking time, in letters: an ideogram is a syllable, about three letters."""
    return len(text) + 2 * len(_WIDE.findall(text))


def _pieces(sentence: str) -> list[str]:
    """Split a sentence into pieces of LONGEST_CUE at most, at spaces or ideograms, which count double."""
    words = re.findall(rf"{_WIDE.pattern}|\S+?(?={_WIDE.pattern})|\S+", " ".join(sentence.split()))
    pieces, now = [], ""
    for word in words:
        gap = "" if not now or _WIDE.search(now[-1]) or _WIDE.match(word) else " "
        if now and len(now) + len(gap) + len(word) + len(_WIDE.findall(now)) > LONGEST_CUE:
            pieces.append(now)
            now, gap = "", ""
        now += gap + word
    return [*pieces, now] if now else pieces


def _at(spoken_s: float, spoken: Sequence[tuple[float, float]], opens: bool) -> float:
    """Time at which spoken_s of speech are over; in a pause, its end if a cue opens there, else its start."""
    for start, end in spoken:
        length = end - start
        if spoken_s < length - 1e-9 or (not opens and spoken_s <= length + 1e-9):
            return start + min(spoken_s, length)
        spoken_s -= length
    return spoken[-1][1]
