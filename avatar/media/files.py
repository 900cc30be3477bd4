"""Names, sizes and checks common to all of a user's files, whatever they contain."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from avatar.errors import BadInput

LONGEST_NAME_BYTES = 200  # of an output's name; side files and drafts add to it
_LONGEST_STEM_BYTES = 160  # of a name generated here
_LONGEST_NAME = 60  # characters, in messages
_LONGEST_QUOTED = 32  # characters of a text


def display_name(path: Path | str, given: str | None = None) -> str:
    """A file's name for messages: without its folder or control characters, and shortened if long."""
    name = re.split(r"[\\/]", str(given or path))[-1]
    name = "".join(char if char.isprintable() else "?" for char in name).strip() or "The file"
    return name if len(name) <= _LONGEST_NAME else f"{name[:40]}…{name[-16:]}"


def quoted(text: str) -> str:
    """A text's beginning in quotation marks, as its name in messages and the gallery."""
    words = " ".join(text.replace("/", " ").replace("\\", " ").split())
    return f"“{words}”" if len(words) <= _LONGEST_QUOTED else f"“{words[:_LONGEST_QUOTED].rstrip()}…”"


def joined_name(*words: str) -> str:
    """Join words to a file name's stem, "a-b-c"; to fit, the longest are cut and a digest is appended."""
    words = tuple(filter(None, words))
    name = "-".join(words)
    if len(os.fsencode(name)) <= _LONGEST_STEM_BYTES:
        return name
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
    room = _LONGEST_STEM_BYTES - len(digest) - len(words)
    left = len(words)
    cut = {}
    for index in sorted(range(left), key=lambda index: len(os.fsencode(words[index]))):
        cut[index] = _cut(words[index], room // left)
        room, left = room - len(os.fsencode(cut[index])), left - 1
    return "-".join([*(cut[index] for index in range(len(words))), digest])


def _cut(word: str, most_bytes: int) -> str:
    """Truncate a word to at most most_bytes bytes, without splitting a character."""
    while len(os.fsencode(word)) > most_bytes:
        word = word[:-1].rstrip()
    return word


def check_file(path: Path, name: str, max_bytes: int, wanted: str) -> None:
    """Refuse what is not a file, is unreadable, empty or too large. wanted: "portrait" or "speech".

    Raises: BadInput.
    """
    try:
        if path.is_dir():
            raise BadInput(f"{name} is a folder.", f"Choose a {wanted} file in it.")
        if not path.exists():
            raise BadInput(f"The {wanted} {name} does not exist.", "Check the name, or choose another file.")
        if not path.is_file():  # a device or a pipe may have no end
            raise BadInput(f"{name} is not a regular file.", f"Choose a {wanted} file.")
        with path.open("rb"):
            size = path.stat().st_size
    except (OSError, ValueError) as error:
        raise BadInput(
            f"{name} cannot be read ({_reason(error)}).",
            f"Check its permissions, or choose another {wanted} file.",
        ) from error
    if size == 0:
        raise BadInput(f"{name} is empty: it holds no data.", f"Choose another {wanted} file.")
    if size > max_bytes:
        raise BadInput(
            f"{name} is too large: {megabytes(size)} MB.",
            f"A {wanted} file may have {megabytes(max_bytes)} MB at most.",
        )


def megabytes(num_bytes: float) -> str:
    """Bytes as MB for display, with one decimal under 10."""
    value = num_bytes / 1e6
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


def minutes(seconds: float) -> str:
    """Seconds for display: "8.4 s", "20 min", "1 h 5 min"."""
    if seconds < 120:
        return f"{seconds:.1f} s".replace(".0 s", " s")
    whole = round(seconds / 60)
    return f"{whole} min" if whole < 120 else f"{whole // 60} h {whole % 60} min"


def _reason(error: Exception) -> str:
    """The system's error message, which unlike str(error) contains no path."""
    return getattr(error, "strerror", None) or type(error).__name__
