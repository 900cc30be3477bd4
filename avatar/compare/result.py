"""A comparison on disk: one folder, whose compare.json holds all that the page and table show."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from avatar.errors import AvatarError, BadInput
from avatar.media import atomic
from avatar.media.files import display_name
from avatar.media.side_files import MARK, is_marked

RESULT, TABLE, PAGE = "compare.json", "compare.md", "compare.html"
SIDE_BY_SIDE = "side-by-side.mp4"
DONE, OOM, FAILED, STOPPED, WAITING = "done", "out_of_memory", "failed", "stopped", "waiting"


@dataclass
class Row:
    """One video of a comparison, or one that could not be made.

    name: unique; label: for display. settings: the varied ones. file: the video, relative to the folder.
    run: columns of its report (runtime.report_columns.row), or None; measures: Measures.as_dict, or None.
    seam: the strip's file. made_from, measured_from: fingerprints of the inputs, to skip what is done.
    """

    name: str
    label: str
    settings: dict[str, Any] = field(default_factory=dict)
    state: str = WAITING
    file: str | None = None
    error: str | None = None
    run: dict[str, Any] | None = None
    measures: dict[str, Any] | None = None
    seam: str | None = None
    made_from: str = ""
    measured_from: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with the measures at the top level."""
        plain = {key: value for key, value in vars(self).items() if key != "measures"}
        return plain | (self.measures or {})


@dataclass
class Comparison:
    """All rows and their folder. portrait, speech: file names."""

    folder: Path
    rows: list[Row]
    portrait: str | None = None
    speech: str | None = None
    side_by_side: str | None = None
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        inputs = {"portrait": self.portrait, "speech": self.speech, "side_by_side": self.side_by_side}
        return {**MARK, **inputs, "notes": self.notes, "videos": [row.as_dict() for row in self.rows]}

    def save(self) -> None:
        """Write compare.json atomically. Raises: AvatarError."""
        write(self.folder / RESULT, json.dumps(self.as_dict(), indent=2, ensure_ascii=False) + "\n")


def open_folder(folder: Path) -> dict[str, dict[str, Any]]:
    """Make the folder, or reuse an earlier comparison's; return its rows by name.

    Raises: BadInput for a folder that holds anything else.
    """
    name = display_name(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        inside = [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise BadInput(f"{name} cannot be used as a folder ({error.strerror}).", "Choose another.") from error
    if not inside:
        return {}
    try:
        data = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        ours = is_marked(data)
        rows = {row["name"]: row for row in data["videos"]} if ours else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        ours, rows = False, {}
    if not ours:
        raise BadInput(
            f"{name} is not empty, and holds no comparison.", "Choose an empty folder, or a new one."
        )
    return rows


def write(path: Path, text: str) -> None:
    """Write a text file atomically. Raises: AvatarError."""
    with named_errors(path.name):
        atomic.write(path, text.encode(errors="backslashreplace"))


@contextmanager
def named_errors(name: str) -> Iterator[None]:
    """Turn disk errors within the block into an error for the user."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        remedy = "Free disk space, then run it again."
        raise AvatarError(f"{name} cannot be written ({reason}).", remedy) from error
