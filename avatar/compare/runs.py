"""Make the videos of a comparison, one by one: finished ones are kept, failures are reported."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from avatar.batch.engines import Engines, Open
from avatar.batch.jobs import check_checkpoint_is_used
from avatar.batch.run import Batch, Outcome
from avatar.compare.cells import PRESET, Cell, CellEntry
from avatar.compare.result import DONE, FAILED, OOM, STOPPED, Comparison, Row
from avatar.compare.speakers import made_from as made_from_speakers
from avatar.compare.speakers import voiced
from avatar.errors import BadInput, DoesNotFit
from avatar.events import Event
from avatar.hardware.inventory import Inventory
from avatar.long.job import LONGEST
from avatar.media.background.choice import is_picture
from avatar.media.files import check_file, display_name
from avatar.media.side_files import written_report
from avatar.media.speaker_choice import AskedSpeakers
from avatar.media.speaker_places import check_together
from avatar.media.voices_file import voices_beside, write_voices_file
from avatar.planning.preset_choice import choose
from avatar.preset import Preset
from avatar.request import Speaker
from avatar.runtime.fingerprint import file_digest
from avatar.runtime.report import read_report
from avatar.runtime.report_columns import row as columns
from avatar.settings import SETTINGS, Picture

VIDEOS = "videos"  # the folder within the comparison's


class Runs:
    """The runs of a comparison; cancel() may be called from another thread."""

    def __init__(
        self,
        comparison: Comparison,
        cells: Sequence[Cell],
        *,
        image: Path,
        audio: Path | None,
        base_settings: dict[str, Any],
        before: dict[str, dict[str, Any]],
        inventory: Inventory,
        work: Path,
        picture: Picture | None = None,
        names_checkpoint: bool = False,
        speakers: AskedSpeakers | None = None,
    ) -> None:
        """base_settings: keys of a batch job common to all cells. before: rows of an earlier run, by name.

        picture: who speaks and what is shown, of all. names_checkpoint: whether the user named one. speakers:
        where several faces speak, of all; audio is then the recording that is split, or None. work: a folder
        that is there.
        """
        picture = picture or Picture()
        self._comparison, self._inventory = comparison, inventory
        self._speakers: tuple[Speaker, ...] = ()
        entries = []
        count = 1 if speakers is None else speakers.num_speakers
        owns = [{**base_settings, **cell.settings} for cell in cells]
        presets = [_preset_of(own, inventory, picture, count) for own in owns]
        able = [(own, preset) for own, preset in zip(owns, presets, strict=True) if preset is not None]
        if names_checkpoint:
            check_checkpoint_is_used([preset for _, preset in able])
        if speakers is not None and able:
            for own, fit in able:
                named = {name: bool(own.get(name)) for name in ("points", "head_only")}
                check_together(speakers, picture, fit, **named, limits=LONGEST)
            self._speakers = voiced(speakers, image, audio, picture, work)
        for cell, own, preset in zip(cells, owns, presets, strict=True):
            files = (image, *([] if audio is None else [audio]), *_files_of(own, picture))
            given = [own, None if preset is None else preset.as_dict(), *map(file_digest, files)]
            given += [] if picture == Picture() else [asdict(picture)]
            made_from = _digest(given if speakers is None else [*given, made_from_speakers(speakers)])
            row = Row(cell.name, cell.label, dict(cell.settings), made_from=made_from)
            comparison.rows.append(row)
            known = before.get(cell.name, {})
            if known.get("made_from") == made_from and known.get("state") == OOM:
                row.state, row.error, row.run = OOM, known.get("error"), known.get("run")
            else:
                video = comparison.folder / VIDEOS / f"{cell.name}.mp4"
                if known.get("made_from") != made_from:
                    _forget(video)
                entries.append(CellEntry(cell.name, image, audio, own, picture=picture, speakers=speakers))
        self._rows = {row.name: row for row in comparison.rows}
        self._batch = Batch(entries, comparison.folder / VIDEOS, work, inventory, resume=True)

    def make(self, open_engine: Open, on_event: Callable[[str, Event | Outcome], None]) -> None:
        """Make the missing videos, one at a time; each row is saved when its run has ended."""

        def follow(name: str, event: Event | Outcome) -> None:
            if isinstance(event, Outcome):
                self._note(self._rows[name], event)
                self._comparison.save()
            on_event(name, event)

        self._comparison.save()  # killed before its first row, it is known for a comparison, and goes on
        engines = Engines(open_engine, 1)
        try:
            self._batch.run(engines, 1, follow)
        finally:
            engines.close()

    def cancel(self) -> None:
        """Stop the current run and start no more."""
        self._batch.cancel()

    def _note(self, row: Row, outcome: Outcome) -> None:
        states = {"done": DONE, "already": DONE, "stopped": STOPPED, "failed": FAILED}
        row.state = states[outcome.state]
        row.error = None if outcome.error is None else str(outcome.error)
        video = outcome.video
        if video is not None and video.is_file():
            row.file = f"{VIDEOS}/{video.name}"
            if self._speakers:
                write_voices_file(self._speakers, voices_beside(video))
            row.run = read_run(video)
        if isinstance(outcome.error, DoesNotFit) or (row.run and row.run["out_of_memory"]):
            row.state = OOM


def read_run(video: Path) -> dict[str, Any] | None:
    """The columns of the report beside a video; None for a video without one."""
    try:
        return columns(read_report(written_report(video)))
    except BadInput:
        return None


def _files_of(own: dict[str, Any], picture: Picture) -> list[Path]:
    """The files that a cell is made from, besides portrait and speech. Raises: BadInput for missing ones."""
    files = {"pose": Path(own["pose"])} if "pose" in own else {}
    files |= {"picture": Path(picture.background)} if is_picture(picture.background) else {}
    for kind, path in files.items():
        check_file(path, display_name(path), LONGEST.max_speech_bytes, kind)
    return list(files.values())


def _preset_of(
    own: dict[str, Any], inventory: Inventory, picture: Picture, num_speakers: int
) -> Preset | None:
    """A cell's preset, checked; None where none fits, which its run will report. Raises: BadInput."""
    settings = {name: value for name, value in own.items() if name in SETTINGS}
    also = [name for name in ("points", "head_only", "pose") if own.get(name)]
    also += picture.demands
    try:
        return choose(own.get(PRESET, "auto"), settings, inventory, also, num_speakers)
    except DoesNotFit:
        return None


def base_settings_of(preset: str | None, settings: dict[str, Any], cells: Sequence[Cell]) -> dict[str, Any]:
    """The settings common to all cells. Raises: BadInput for a setting that is both given and varied."""
    varied = set(cells[0].settings)
    if PRESET in varied and preset is not None:
        raise BadInput("preset is both fixed and varied.", "Leave one of them out.")
    for name in settings:
        if name in varied:
            raise BadInput(f"{name} is both fixed and varied.", "Leave one of them out.")
    return {**settings, **({} if PRESET in varied else {PRESET: preset or "auto"})}


def _forget(video: Path) -> None:
    """Remove an earlier comparison's outdated video and its report, from the comparison's own folder only."""
    for path in (video, written_report(video), voices_beside(video)):
        path.unlink(missing_ok=True)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
