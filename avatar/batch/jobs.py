"""Read the jobs of a batch from a TOML or CSV file, or from a folder of portraits and speech."""

from __future__ import annotations

import csv
import io
import logging
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from avatar.batch.inputs import Files, SkippedFile, each_with_each, is_pattern, matching
from avatar.errors import AvatarError, BadInput
from avatar.hardware.inventory import Inventory
from avatar.long.job import LONGEST, Job
from avatar.media.background.choice import is_picture, suffix_of
from avatar.media.face_choice import face_words
from avatar.media.files import LONGEST_NAME_BYTES, joined_name
from avatar.media.framing import parse_picture
from avatar.media.speaker_choice import NAMES, STEREO, AskedSpeakers, asked_speakers
from avatar.media.speaker_words import speaker_of, speaker_words
from avatar.paths import is_dir
from avatar.planning.preset_choice import choose
from avatar.planning.verdict import require
from avatar.preset import Preset
from avatar.request import KEEP
from avatar.settings import PICTURE, SETTINGS, SPEAKING, Picture, refusal
from avatar.speech.catalogue import Catalogue, speaking
from avatar.speech.dialogue import Dialogue
from avatar.speech.narration import Narrator, Script, read_text

log = logging.getLogger(__name__)

_DELIMITERS = ",;\t"  # Excel writes semicolons in locales with a decimal comma

_KINDS: dict[str, type] = {  # every key of a job and its type
    "image": str,
    "audio": str,
    "text": str,
    "text_file": str,
    "speakers": list,
    "split": str,
    "name": str,
    "preset": str,
    "points": str,
    "head_only": bool,
    "pose": str,
    "max_duration": float,
    "checkpoint_every": int,
    "independent": bool,
    "keep_parts": bool,
} | {name: one.kind for name, one in {**SETTINGS, **PICTURE, **SPEAKING}.items()}
_OF_ENTRY = (  # not options of the Job
    *("image", "audio", "text", "text_file", "speakers", "split", "name"),
    *SPEAKING,
    *PICTURE,
)
_TRUTHS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True)
class BatchEntry:
    """One video of a batch. name: also its file's.

    script: the text to speak if there is no audio. picture: the face that speaks, and the framing. speakers:
    where several faces speak. options: all other keys of the job.
    """

    name: str
    image: Path
    audio: Path | None
    options: Mapping[str, Any] = field(default_factory=dict)
    script: Script | None = None
    picture: Picture = field(default_factory=Picture)
    speakers: AskedSpeakers | None = None

    @property
    def num_speakers(self) -> int:
        return self.speakers.num_speakers if self.speakers else 1

    def preset(self, inventory: Inventory) -> Preset:
        """The preset with the job's settings, `auto` resolved for a machine. Raises: AvatarError."""
        options = self.options
        settings = {key: options[key] for key in SETTINGS if key in options}
        also = [key for key in ("points", "head_only", "pose") if options.get(key)]
        also += self.picture.demands
        return choose(options.get("preset", "auto"), settings, inventory, also, self.num_speakers)

    def job(self, output: Path, inventory: Inventory, resume: bool) -> Job:
        """The job, for a machine that can run it. Raises: AvatarError."""
        options = self.options
        preset = require(self.preset(inventory), inventory, num_speakers=self.num_speakers).preset
        return Job(
            image=self.image,
            audio=self.audio,
            output=output / f"{self.name}{suffix_of(self.picture.background)}",
            preset=preset,
            script=self.script,
            points=Path(options["points"]) if "points" in options else None,
            head_only=options.get("head_only", False),
            pose=Path(options["pose"]) if "pose" in options else None,
            picture=self.picture,
            speakers=self.speakers,
            max_duration_s=options.get("max_duration"),
            checkpoint_every=options.get("checkpoint_every"),
            independent=options.get("independent", False),
            keep_parts=options.get("keep_parts", False),
            resume=resume,
            tokenizer=inventory.checkpoint.tokenizer,
        )


@dataclass(frozen=True)
class BatchJobs:
    """The videos of a batch. left_out: files that look like inputs, but that no video is made from."""

    entries: list[BatchEntry]
    left_out: list[SkippedFile] = field(default_factory=list)


def refuse_unused_checkpoint(entries: Iterable[BatchEntry], inventory: Inventory) -> None:
    """Refuse a checkpoint that was named, and that no job reads. Raises: BadInput."""
    presets = []
    for entry in entries:
        try:
            presets.append(entry.preset(inventory))
        except AvatarError as error:
            log.debug("%s has no preset yet: %s", entry.name, error)  # which its own turn reports
    check_checkpoint_is_used(presets)


def check_checkpoint_is_used(presets: Sequence[Preset]) -> None:
    """Raises: BadInput where presets are given, and none of them reads the checkpoint that was named."""
    if presets and all(refusal(preset.engine, "ckpt_dir") for preset in presets):
        engine = presets[0].engine
        raise BadInput(
            f"Everything is made by the {engine} engine, which cannot honour ckpt_dir: "
            f"{refusal(engine, 'ckpt_dir')}.",
            "Leave ckpt_dir out; or see `python -m avatar doctor` for what the other presets need.",
        )


def read_jobs(path: Path, *, all_with_all: bool = False) -> BatchJobs:
    """The jobs of a file or folder; several portraits or speeches in one job are all combined.

    TOML: one [[job]] per job, [defaults] for all; CSV: one row per job, named columns; paths are relative to
    the file, and may be patterns. A folder: portraits and speech of the same name; all_with_all: every
    combination instead. Raises: BadInput naming the job and what is wrong with it.
    """
    files = Files()
    if is_dir(path):
        found = _of_folder(path, files, all_with_all)
    elif all_with_all:
        raise BadInput("--each_with_each is for a folder.", "In a list of jobs, a job with lists does it.")
    elif path.suffix.lower() in (".toml", ".csv"):
        rows = _toml_rows(path) if path.suffix.lower() == ".toml" else _csv_rows(path)
        found = [entry for where, row in rows for entry in _entries(row, where, path.parent, files)]
    else:
        raise BadInput(f"{path.name} is not a job list.", "Give a .toml or .csv file, or a folder.")
    if not found:
        left = "".join(f" {one.path.name} {one.why}." for one in files.left_out[:3])
        raise BadInput(f"{path.name} contains no jobs.{left}", "It must name portraits and speech.")
    names = [entry.name for entry in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise BadInput(f"Two jobs would both make {twice}.mp4.", "Give each a name of its own.")
    return BatchJobs(found, files.left_out)


def _toml_rows(path: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, error) from error
    jobs, defaults = data.get("job", []), data.get("defaults", {})
    tables = isinstance(jobs, list) and all(isinstance(row, dict) for row in [*jobs, defaults])
    if not tables or set(data) - {"job", "defaults"}:
        raise BadInput(f"{path.name} is not a job list.", "Write [[job]] for each, and [defaults] for all.")
    for number, row in enumerate(jobs, 1):
        yield f"{path.name}, job {number}", {**defaults, **row}


def _csv_rows(path: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        first = int(text.lower().startswith("sep="))  # a separator line that Excel writes
        text = text.partition("\n")[2] if first else text
        delimiter = max(_DELIMITERS, key=text.partition("\n")[0].count)
        rows = list(csv.DictReader(io.StringIO(text), delimiter=delimiter, strict=True))
    except UnicodeDecodeError as error:
        raise BadInput(f"{path.name} is not in UTF-8.", 'Save it as "CSV UTF-8".') from error
    except (OSError, csv.Error) as error:
        raise _unreadable(path, error) from error
    for number, row in enumerate(rows, 2 + first):
        where = f"{path.name}, line {number}"
        if None in row or None in row.values():
            raise BadInput(
                f"{where}: it has a different number of cells than the first line.", "Correct the file."
            )
        cells = {key.strip(): cell.strip() for key, cell in row.items()}
        values = {key: _parsed(key, cell, where) for key, cell in cells.items() if cell}
        if values:  # spreadsheets also write empty lines
            yield where, values


def _parsed(key: str, cell: str, where: str) -> Any:
    """A cell converted to its column's type; unknown columns are reported later."""
    kind = _KINDS.get(key, str)
    try:
        if key == "speakers":
            return [part for part in cell.split(";") if part.strip()]
        if kind is bool:
            return _TRUTHS[cell.lower()]
        if kind is float:
            return float(cell.replace(",", "."))
        return int(cell) if kind is int else cell
    except (KeyError, ValueError) as error:
        raise BadInput(f"{where}: {key} is {cell!r}.", "Correct the file.") from error


def _entries(row: dict[str, Any], where: str, folder: Path, files: Files) -> list[BatchEntry]:
    """One entry per combination of portrait and speech of a row."""
    row = {key: face_words(value) if key == "face" else value for key, value in row.items()}
    for key, value in row.items():
        _check(key, value, where)
    given = {name: row[name] for name in PICTURE if name in row}
    if is_picture(given.get("background", KEEP)):
        given["background"] = str(folder / given["background"])
    picture = parse_picture(f"{where}: ", files=True, **given)
    script, speakers = _speech(row, where, folder)
    own = speakers is not None and speakers.split in ("", NAMES)  # no recording of all
    images = _paths(row.get("image"), "image", where, folder, files)
    audios = [None] if script or own else _paths(row.get("audio"), "audio", where, folder, files)
    options = {key: value for key, value in row.items() if key not in _OF_ENTRY}
    for key in ("points", "pose"):
        if key in options:
            options[key] = str(folder / options[key])
    prefix = row.get("name", "")
    if prefix and (set(prefix) & set("/\\\0") or prefix.startswith(".")):
        raise BadInput(f"{where}: name {prefix!r} cannot name a file.", "Choose a plain name.")
    if len(f"{prefix}.mp4".encode(errors="surrogateescape")) > LONGEST_NAME_BYTES:
        raise BadInput(f"{where}: name {prefix[:40]!r}… is too long for a file.", "Choose a shorter name.")
    pairs = [(image, audio) for image in images for audio in audios]
    if prefix and len(pairs) == 1:
        return [BatchEntry(prefix, *pairs[0], options, script, picture, speakers)]
    said = speakers.stem or "text" if speakers is not None and own else "text"
    return [
        BatchEntry(_name(prefix, pair, said), *pair, options, script, picture, speakers) for pair in pairs
    ]


def _speech(
    row: Mapping[str, Any], where: str, folder: Path
) -> tuple[Script | None, AskedSpeakers | None]:
    """The text that one voice speaks, and who speaks where several faces do. Raises: BadInput.

    Also where a voice cannot speak its text.
    """
    try:
        speakers = [
            speaker_of(one if isinstance(one, Mapping) else speaker_words(str(one)), folder)
            for one in row.get("speakers", [])
        ]
        script = _script(row, folder, has_texts=any(one.text for one in speakers))
        split = row.get("split")
        asked = asked_speakers(
            speakers,
            split if split in (None, STEREO, NAMES) else str(folder / split),
            recording="audio" in row,
            text="" if script is None else script.text,
            speaking=speaking(**{name: row[name] for name in SPEAKING if name in row}),
        )
        if asked is not None and asked.is_typed:
            Dialogue.of(asked, Catalogue(), LONGEST)
        elif script is not None:
            Narrator.of(script, Catalogue(), LONGEST)
    except BadInput as error:
        raise BadInput(f"{where}: {error.message}", error.remedy) from error
    return None if asked is not None and asked.split == NAMES else script, asked


def _script(row: Mapping[str, Any], folder: Path, *, has_texts: bool) -> Script | None:
    """The text of a row; None for a recording. has_texts: whether speakers have texts. Raises: BadInput."""
    given = {name: row[name] for name in SPEAKING if name in row}
    sources = [key for key in ("audio", "text", "text_file") if key in row]
    if len(sources) > 1:
        raise BadInput(f"{' and '.join(sources)} are given.", "Give one of them.")
    if sources in ([], ["audio"]):
        if given and not has_texts:
            raise BadInput(f"{next(iter(given))} is for a text.", "Give text or text_file.")
        return None
    return Script(row["text"] if "text" in row else read_text(folder / row["text_file"]), speaking(**given))


def _check(key: str, value: Any, where: str) -> None:
    if key not in _KINDS:
        close = get_close_matches(key, list(_KINDS), 1, 0.5)
        nearest = f" Did you mean {close[0]!r}?" if close else ""
        raise BadInput(f"{where}: unknown key {key!r}.{nearest}", f"Keys: {', '.join(_KINDS)}.")
    kind = _KINDS[key]
    fits = isinstance(value, kind)
    if kind in (int, float):
        fits = isinstance(value, int | float if kind is float else int) and not isinstance(value, bool)
    if key in ("image", "audio") and isinstance(value, list):
        fits = all(isinstance(one, str) for one in value)
    if not fits:
        raise BadInput(f"{where}: {key} is {value!r}.", "Correct the file.")


def _paths(value: Any, key: str, where: str, folder: Path, files: Files) -> list[Path]:
    """The files that a key names; patterns match only readable files."""
    found: list[Path] = []
    for text in [value] if isinstance(value, str) else value or []:
        named = matching(folder, text)
        found += files.usable(named, key) if is_pattern(folder, text) else named
    if not found:
        left = "".join(f" {one.path.name} {one.why}." for one in files.left_out[:3])
        raise BadInput(
            f"{where}: {key} names no file.{left}", f"Give {key} a path, a list of paths or a pattern."
        )
    return found


def _of_folder(folder: Path, files: Files, all_with_all: bool) -> list[BatchEntry]:
    there = list(folder.iterdir())
    images, audios = files.usable(there, "image"), files.usable(there, "audio")
    if all_with_all:
        return [BatchEntry(_name("", pair), *pair) for pair in each_with_each(images, audios)]
    pairs = files.pairs(images, audios)
    if not pairs and images and audios:
        count = len(images) * len(audios)
        raise BadInput(
            f"In {folder.resolve().name} no portrait and no speech have the same name.",
            f"Name them alike; or take --each_with_each, which makes {count} videos of"
            f" {len(images)} portraits and {len(audios)} speeches.",
        )
    return [BatchEntry(joined_name(pair[0].stem), *pair) for pair in pairs]


def _name(prefix: str, pair: tuple[Path, Path | None], said: str = "text") -> str:
    """said: what stands for speech that is no file."""
    return joined_name(prefix, *(path.stem if path else said for path in pair))


def _unreadable(path: Path, error: Exception) -> BadInput:
    reason = getattr(error, "strerror", None) or str(error)
    return BadInput(f"{path.name} cannot be read: {reason}.", "Correct the file.")
