"""Find and pair the portraits and speech of a folder or pattern, and list the files left out."""

from __future__ import annotations

import mimetypes
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from avatar.errors import BadInput
from avatar.media.portrait import PORTRAIT_SUFFIXES
from avatar.media.side_files import MADE_BY, is_output, report_path
from avatar.media.speech_reader import SPEECH_SUFFIXES
from avatar.paths import is_file

SUFFIXES = {"image": PORTRAIT_SUFFIXES, "audio": SPEECH_SUFFIXES}
_KINDS = {"image": ("image",), "audio": ("audio", "video")}  # kinds by file suffix
_WORDS = {"image": "portrait", "audio": "speech"}
_SIGNS = "*?["
_OUTPUT = f"is a video of {MADE_BY}'s; to take its sound, name it in a list of jobs"

Pair = tuple[Path, Path]


@dataclass(frozen=True)
class SkippedFile:
    """A file that no video is made from. why: the end of a sentence that begins with its name."""

    path: Path
    why: str


class Files:
    """Files by kind, "image" or "audio". left_out: files that look like inputs, but are not used."""

    def __init__(self) -> None:
        self.left_out: list[SkippedFile] = []

    def usable(self, paths: Iterable[Path], kind: str) -> list[Path]:
        """The paths that can be read as this kind, by suffix; no hidden files, no earlier outputs."""
        found = []
        for path in sorted(paths):
            if path.name.startswith(".") or not path.is_file():
                continue
            if is_output(path):
                if path.suffix.lower() == ".mp4" and kind == "audio" and not report_path(path).exists():
                    self._leave(path, _OUTPUT)
            elif path.suffix.lower() in SUFFIXES[kind]:
                found.append(path)
            elif (mimetypes.guess_type(path.name)[0] or "").partition("/")[0] in _KINDS[kind]:
                readable = ", ".join(suffix.removeprefix(".") for suffix in SUFFIXES[kind])
                self._leave(path, f"cannot be read as {_WORDS[kind]} (can be: {readable})")
        return found

    def pairs(self, images: Sequence[Path], audios: Sequence[Path]) -> list[Pair]:
        """Pairs of portrait and speech with the same name, ignoring case; the others are left out.

        Raises: BadInput when several files have the same name.
        """
        named: dict[str, tuple[list[Path], list[Path]]] = defaultdict(lambda: ([], []))
        for side, paths in enumerate((images, audios)):
            for path in paths:
                named[_key(path).casefold()][side].append(path)
        found: list[Pair] = []
        for portraits, speeches in named.values():
            found += _matched(portraits, speeches)
        paired = {path for pair in found for path in pair}
        for kind, other, paths in (("image", "audio", images), ("audio", "image", audios)):
            for path in paths:
                if path not in paired:
                    self._leave(path, f"is a {_WORDS[kind]} file without a {_WORDS[other]} file of its name")
        return found

    def _leave(self, path: Path, why: str) -> None:
        if path not in [left.path for left in self.left_out]:
            self.left_out.append(SkippedFile(path, why))


def matching(folder: Path, text: str) -> list[Path]:
    """The files that a path or pattern names; an existing file of exactly that name takes precedence."""
    if is_file(folder / text) or not any(sign in text for sign in _SIGNS):
        return [folder / text]
    base, pattern = (Path("/"), text.lstrip("/")) if text.startswith("/") else (folder, text)
    try:
        return _globbed(base, pattern)
    except (OSError, ValueError, NotImplementedError) as error:
        raise BadInput(f"{text[:60]!r} is no pattern of image or audio files.", "Correct it.") from error


def _globbed(base: Path, pattern: str) -> list[Path]:
    if any("**" in part and part != "**" for part in Path(pattern).parts):
        raise ValueError(
            "** beside something else"
        )  # Python takes it for * from 3.13 on, and refuses it before
    # If brackets match nothing as a character class, they may be literal: "clips [a]/*.png".
    return list(base.glob(pattern)) or list(base.glob(pattern.replace("[", "[[]")))


def is_pattern(folder: Path, text: str) -> bool:
    """Whether a text is a pattern rather than the name of an existing file."""
    return any(sign in text for sign in _SIGNS) and not is_file(folder / text)


def each_with_each(images: Sequence[Path], audios: Sequence[Path]) -> list[Pair]:
    """Every portrait with every speech."""
    return list(product(images, audios))


def _matched(portraits: Sequence[Path], speeches: Sequence[Path]) -> list[Pair]:
    """Pairs whose names differ at most in case."""
    if len(portraits) == len(speeches) == 1:
        return [(portraits[0], speeches[0])]
    if not portraits or not speeches:
        return []
    exact = [pair for pair in product(portraits, speeches) if _key(pair[0]) == _key(pair[1])]
    names = [_key(portrait) for portrait, _ in exact]
    if not exact or len(set(names)) < len(names):
        several = ", ".join(path.name for path in (*portraits, *speeches))
        raise BadInput(
            f"It is not clear which of these belong together: {several}.",
            "Rename them so that each portrait has one speech file of its name, or write a list of jobs.",
        )
    return exact


def _key(path: Path) -> str:
    """A file's stem, NFC-normalised, since some systems store é as one code point, others as two."""
    return unicodedata.normalize("NFC", path.stem)
