"""Finished videos as rows of a comparison, copied into its folder so that the page plays them anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from avatar.compare.result import DONE, Comparison, Row, named_errors
from avatar.compare.runs import VIDEOS, read_run
from avatar.errors import BadInput
from avatar.measures.frames import read_frames
from avatar.media import atomic
from avatar.media.files import display_name, joined_name
from avatar.media.side_files import report_path, written_report
from avatar.media.voices_file import voices_beside
from avatar.runtime.fingerprint import file_digest


def check_videos(videos: Sequence[Path], labels: Sequence[str]) -> None:
    """Refuse files that are not videos, before anything is copied. Raises: BadInput."""
    if labels and len(labels) != len(videos):
        raise BadInput(f"{len(labels)} labels are given for {len(videos)} videos.", "Give one for each.")
    for video in videos:
        if next(read_frames(video), None) is None:
            raise BadInput(f"{display_name(video)} has no pictures.", "Give a video.")


def add_videos(comparison: Comparison, videos: Sequence[Path], labels: Sequence[str]) -> None:
    """Copy videos, and their reports, into the folder; each becomes a row. Raises: AvatarError."""
    taken: set[str] = set()
    for number, video in enumerate(videos):
        name = _unique(joined_name(video.stem), taken)
        place = comparison.folder / VIDEOS / f"{name}{video.suffix.lower()}"
        with named_errors(place.name):
            place.parent.mkdir(exist_ok=True)
            if not (place.exists() and file_digest(place) == file_digest(video)):
                atomic.copy(video, place)
            report = written_report(video)
            if report.is_file() and report.resolve() != report_path(place).resolve():
                atomic.copy(report, report_path(place))
            elif not report.is_file():
                report_path(place).unlink(missing_ok=True)
            voices, kept = voices_beside(video), voices_beside(place)
            if voices.is_file() and voices.resolve() != kept.resolve():
                atomic.copy(voices, kept)
            elif not voices.is_file():
                kept.unlink(missing_ok=True)
        label = labels[number] if labels else display_name(name)
        file = f"{VIDEOS}/{place.name}"
        comparison.rows.append(Row(name, label, state=DONE, file=file, run=read_run(place)))


def _unique(name: str, taken: set[str]) -> str:
    found, count = name, 1
    while found.casefold() in taken:
        count += 1
        found = f"{name}-{count}"
    taken.add(found.casefold())
    return found
