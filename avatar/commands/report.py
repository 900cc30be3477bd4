"""`report`: run reports side by side: configuration, peaks, out of memory or not, speed."""

from __future__ import annotations

import argparse
import glob
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from avatar.commands.output import console, write_json
from avatar.errors import BadInput
from avatar.long.job import PARTS_SUFFIX
from avatar.media.side_files import REPORT
from avatar.paths import exists, is_dir
from avatar.runtime.gallery import HALF
from avatar.runtime.report import GpuUse, RunReport, read_report
from avatar.runtime.report_columns import configuration, out_of_memory, row

GIB = 2**30
UNKNOWN = "–"


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "report",
        help="compare finished runs",
        description=__doc__,
        epilog="Peaks are what the driver said twice a second; – was not measured, ≤ is the whole card's.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="reports (VIDEO.report.json), patterns, or folders of videos"
    )
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print all readable reports; the exit code is nonzero if any could not be read."""
    reports: dict[Path, RunReport] = {}
    refused: list[Path] = []
    for path, is_wanted in find(args.paths):
        try:
            reports[path] = read_report(path)
        except BadInput:
            if is_wanted:
                refused.append(path)
    if not reports:
        names = ", ".join(dict.fromkeys(path.name for path in refused))
        words = f"No run report among them: {names}." if refused else "There is no run report there."
        raise BadInput(words, "Give the .report.json files that lie beside videos, or a folder of videos.")
    if args.json:
        rows = [{"file": path, **row(report)} for path, report in reports.items()]
        write_json({"reports": rows, "no_reports": refused})
    else:
        _print(reports)
        if refused:
            words = ", ".join(str(path) for path in refused)
            console(sys.stderr).print(f"No run reports: {words}", markup=False, soft_wrap=True)
    return BadInput.exit_code if refused else 0


def find(paths: Sequence[str]) -> Iterator[tuple[Path, bool]]:
    """Files to read, each once; and whether the user named it, rather than a folder that contains it.

    Raises: BadInput for a path or pattern that matches nothing.
    """
    seen: set[Path] = set()
    for text in paths:
        path = Path(text)
        if is_dir(path):
            inside = sorted(path.rglob("*.json"))
            found = [(one, False) for one in inside if not _is_part(one.relative_to(path))]
        elif exists(path):
            found = [(path, True)]
        else:
            found = [(Path(one), True) for one in _matching(text)]
        if not found:
            raise BadInput(
                f"There is nothing to read at {text[:60]}.", "Give reports, as out/*.json, or a folder."
            )
        for one, is_wanted in found:
            if one.resolve() not in seen:
                seen.add(one.resolve())
                yield one, is_wanted


def _matching(pattern: str) -> list[str]:
    """Files that a pattern matches; none for an impossible name."""
    try:
        return sorted(glob.glob(pattern, recursive=True))
    except (OSError, ValueError):
        return []


def _print(reports: dict[Path, RunReport]) -> None:
    table = Table("configuration", show_lines=True)
    table.add_column("frames", justify="right")
    table.add_column("peak / planned\nper GPU, GiB", justify="right", no_wrap=True)
    table.add_column("peak / planned\nhost, GiB", justify="right", no_wrap=True)
    table.add_column("OOM?")
    table.add_column("average\nfps", justify="right")
    table.add_column("first\nframe", justify="right", no_wrap=True)
    for path, report in reports.items():
        table.add_row(
            escape(f"{_name(path)}: {report.preset['name']}\n{configuration(report)}"),
            f"{report.num_frames}" + (f" of {report.frames_asked}" if report.stopped else ""),
            "\n".join(map(_gpu, report.gpus)) or UNKNOWN,
            _host(report),
            out_of_memory(report),
            UNKNOWN if report.frames_per_s is None else f"{report.frames_per_s:.1f}",
            UNKNOWN if report.first_frame_s is None else f"{report.first_frame_s:.1f} s",
        )
    out = console()
    out.print(table)
    for path, report in reports.items():
        for taken in report.rungs:
            at = f" at frame {taken.frame}" if taken.frame else ""
            out.print(f"{_name(path)}: rung {taken.rung}{at}. {taken.why}", markup=False, soft_wrap=True)
        if report.error:
            out.print(f"{_name(path)}: {report.error}", markup=False, soft_wrap=True)


def _name(path: Path) -> str:
    """A report's name in the table: its video's stem."""
    return path.name.removesuffix(REPORT).removesuffix(".json")


def _gpu(gpu: GpuUse) -> str:
    """ "0: 38.2 / 39.0" """
    if gpu.peak_bytes is None and gpu.card_peak_bytes is not None:
        return f"{gpu.index}: ≤ {_gib(gpu.card_peak_bytes)} / {_gib(gpu.planned_bytes)}"
    return f"{gpu.index}: {_gib(gpu.peak_bytes)} / {_gib(gpu.planned_bytes)}"


def _host(report: RunReport) -> str:
    memory = report.memory
    words = f"{_gib(memory.host_peak_bytes if memory else None)} / {_gib(report.host_planned_bytes)}"
    pinned = memory.pinned_peak_bytes if memory else None
    return words + (f"\npinned {_gib(pinned)}" if pinned else "")


def _gib(num_bytes: int | None) -> str:
    return UNKNOWN if num_bytes is None else f"{num_bytes / GIB:.1f}"


def _is_part(path: Path) -> bool:
    """Whether a report is of a part of a video: the whole video's report includes it, or will."""
    return any(name.endswith(PARTS_SUFFIX) or name == HALF for name in path.parts[:-1])
