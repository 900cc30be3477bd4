"""What a batch is asked for: a TOML or CSV file, or a folder of portraits and speech."""

from __future__ import annotations

import csv
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import Any, get_type_hints

from avatar.errors import BadInput
from avatar.long.job import Job
from avatar.memory.choice import choose
from avatar.memory.fit import require
from avatar.memory.inventory import Inventory
from avatar.paths import is_dir
from avatar.preset import SECTIONS, SETTINGS

PORTRAITS = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".heic", ".heif", ".bmp", ".tif", ".tiff")
SPEECHES = (".wav", ".mp3", ".m4a", ".ogg", ".opus", ".flac", ".webm", ".mp4", ".aac")
_GLOB = "*?["

_KINDS: dict[str, type] = {  # every key of a job and its type
    "image": str,
    "audio": str,
    "name": str,
    "preset": str,
    "points": str,
    "head_only": bool,
    "max_duration": float,
    "checkpoint_every": int,
    "independent": bool,
    "keep_parts": bool,
} | {name: get_type_hints(SECTIONS[section])[name] for name, section in SETTINGS.items()}
_TRUTHS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True)
class Entry:
    """One video that a batch is asked for. name: also its file's. wishes: every other key that was given."""

    name: str
    image: Path
    audio: Path
    wishes: Mapping[str, Any] = field(default_factory=dict)

    def job(self, output: Path, inventory: Inventory, resume: bool) -> Job:
        """The job, its preset resolved for a machine. Raises: AvatarError."""
        wishes = dict(self.wishes)
        settings = {key: wishes[key] for key in SETTINGS if key in wishes}
        also = [key for key in ("points", "head_only") if wishes.get(key)]
        preset = choose(wishes.get("preset", "auto"), settings, inventory, also)
        require(preset, inventory)
        return Job(
            image=self.image,
            audio=self.audio,
            output=output / f"{self.name}.mp4",
            preset=preset,
            points=Path(wishes["points"]) if "points" in wishes else None,
            head_only=wishes.get("head_only", False),
            max_duration_s=wishes.get("max_duration"),
            checkpoint_every=wishes.get("checkpoint_every"),
            independent=wishes.get("independent", False),
            keep_parts=wishes.get("keep_parts", False),
            resume=resume,
        )


def read_jobs(path: Path) -> list[Entry]:
    """What a file or folder asks for; of several portraits or speeches, each with each.

    TOML: [[job]] for each, [defaults] for all; CSV: a row for each, named columns; paths are relative to
    the file, and may be patterns. A folder: portraits and speech of the same name, or else each with each.
    Raises: BadInput naming the job and what is wrong with it.
    """
    if is_dir(path):
        found = _of_folder(path)
    elif path.suffix.lower() == ".toml":
        found = [entry for where, row in _toml_rows(path) for entry in _entries(row, where, path.parent)]
    elif path.suffix.lower() == ".csv":
        found = [entry for where, row in _csv_rows(path) for entry in _entries(row, where, path.parent)]
    else:
        raise BadInput(f"{path.name} is no list of jobs.", "Give a .toml or .csv file, or a folder.")
    if not found:
        raise BadInput(f"{path.name} asks for no video.", "It must name portraits and speech.")
    names = [entry.name for entry in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise BadInput(f"Two jobs would both make {twice}.mp4.", "Give each a name of its own.")
    return found


def _toml_rows(path: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, error) from error
    jobs, defaults = data.get("job", []), data.get("defaults", {})
    tables = isinstance(jobs, list) and all(isinstance(row, dict) for row in [*jobs, defaults])
    if not tables or set(data) - {"job", "defaults"}:
        raise BadInput(f"{path.name} is no list of jobs.", "Write [[job]] for each, and [defaults] for all.")
    for number, row in enumerate(jobs, 1):
        yield f"{path.name}, job {number}", {**defaults, **row}


def _csv_rows(path: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, strict=True))
    except (OSError, ValueError, csv.Error) as error:
        raise _unreadable(path, error) from error
    for number, row in enumerate(rows, 2):
        where = f"{path.name}, line {number}"
        if None in row or None in row.values():
            raise BadInput(f"{where}: it has not as many cells as the first line.", "Correct the file.")
        cells = {key.strip(): cell.strip() for key, cell in row.items()}
        yield where, {key: _parsed(key, cell, where) for key, cell in cells.items() if cell}


def _parsed(key: str, cell: str, where: str) -> Any:
    """A cell as what its column holds; unknown columns are told later."""
    kind = _KINDS.get(key, str)
    try:
        if kind is bool:
            return _TRUTHS[cell.lower()]
        return kind(cell) if kind in (int, float) else cell
    except (KeyError, ValueError) as error:
        raise BadInput(f"{where}: {key} is {cell!r}.", "Correct the file.") from error


def _entries(row: dict[str, Any], where: str, folder: Path) -> list[Entry]:
    """One entry for each portrait and speech of a row."""
    for key, value in row.items():
        _check(key, value, where)
    images, audios = (_paths(row.get(key), key, where, folder) for key in ("image", "audio"))
    wishes = {key: value for key, value in row.items() if key not in ("image", "audio", "name")}
    if "points" in wishes:
        wishes["points"] = str(folder / wishes["points"])
    pairs = list(product(images, audios))
    prefix = row.get("name", "")
    if prefix and (set(prefix) & set("/\\\0") or prefix.startswith(".")):
        raise BadInput(f"{where}: name {prefix!r} cannot name a file.", "Choose a plain name.")
    names = [prefix] if prefix and len(pairs) == 1 else [_name(prefix, *pair) for pair in pairs]
    return [Entry(name, *pair, wishes) for name, pair in zip(names, pairs)]


def _check(key: str, value: Any, where: str) -> None:
    if key not in _KINDS:
        close = get_close_matches(key, list(_KINDS), 1, 0.5)
        nearest = f" Did you mean {close[0]!r}?" if close else ""
        raise BadInput(f"{where}: unknown key {key!r}.{nearest}", f"Keys: {', '.join(_KINDS)}.")
    kind = _KINDS[key]
    fits = isinstance(value, kind) if isinstance(kind, type) else isinstance(value, str)
    if kind in (int, float):
        fits = isinstance(value, int | float if kind is float else int) and not isinstance(value, bool)
    if key in ("image", "audio") and isinstance(value, list):
        fits = all(isinstance(one, str) for one in value)
    if not fits:
        raise BadInput(f"{where}: {key} is {value!r}.", "Correct the file.")


def _paths(value: Any, key: str, where: str, folder: Path) -> list[Path]:
    """The files that a key names; patterns name those that are there."""
    found: list[Path] = []
    for text in [value] if isinstance(value, str) else value or []:
        if not any(sign in text for sign in _GLOB):
            found.append(folder / text)
            continue
        suffixes = PORTRAITS if key == "image" else SPEECHES
        base, pattern = (Path("/"), text.lstrip("/")) if text.startswith("/") else (folder, text)
        try:
            found += sorted(path for path in base.glob(pattern) if path.suffix.lower() in suffixes)
        except (OSError, ValueError, NotImplementedError) as error:
            raise BadInput(f"{where}: {key} {text[:60]!r} is no pattern of files.", "Correct it.") from error
    if not found:
        raise BadInput(f"{where}: {key} names no file.", f"Give {key} a path, a list of paths or a pattern.")
    return found


def _of_folder(folder: Path) -> list[Entry]:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    images = [path for path in files if path.suffix.lower() in PORTRAITS]
    audios = [path for path in files if path.suffix.lower() in SPEECHES]
    pairs = [(image, audio) for image in images for audio in audios if image.stem == audio.stem]
    if pairs:
        return [Entry(image.stem, image, audio) for image, audio in pairs]
    return [Entry(_name("", image, audio), image, audio) for image, audio in product(images, audios)]


def _name(prefix: str, image: Path, audio: Path) -> str:
    return "-".join(filter(None, (prefix, image.stem, audio.stem)))


def _unreadable(path: Path, error: Exception) -> BadInput:
    reason = getattr(error, "strerror", None) or str(error)
    return BadInput(f"{path.name} cannot be read: {reason}.", "Correct the file.")
