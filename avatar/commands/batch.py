"""`batch`: one video per pair of portrait and speech, here or on a Ray cluster."""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar
from rich.table import Table

from avatar.batch.engines import Engines, Open, gpus_of
from avatar.batch.inputs import SkippedFile
from avatar.batch.jobs import BatchEntry, BatchJobs, read_jobs, refuse_unused_checkpoint
from avatar.batch.run import Batch, Outcome
from avatar.commands.output import console, write_json
from avatar.commands.setting_flags import add_checkpoint
from avatar.commands.signals import Stop, stopped_by_signals
from avatar.commands.upscale_flag import add_upscale_with, upscale_words
from avatar.commands.webhook_flag import add_notify, notifying
from avatar.errors import BadInput
from avatar.events import Event, Notice, Progress
from avatar.geometry import FPS
from avatar.hardware.inventory import Inventory, probe
from avatar.preset import Preset
from avatar.runtime.engine import Engine
from avatar.runtime.factory import open_engine
from avatar.runtime.scratch import Scratch
from avatar.runtime.webhook import JobNews

OnEvent = Callable[[str, Event | Outcome], None]
EXECUTORS = ("local", "ray")
_WORDS = {"done": "done", "already": "was there", "stopped": "stopped", "failed": "failed"}


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "batch",
        help="make many videos",
        description=__doc__,
        epilog="exit codes: 0 all done, the first failure's, 130 stopped (128 and the signal's number), "
        "2 a file was left out",
        allow_abbrev=False,
    )
    parser.add_argument("jobs_file", type=Path, metavar="JOBS", help="jobs.toml, jobs.csv, or a folder")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the videos' folder")
    parser.add_argument(
        "--resume", action="store_true", help="leave out finished videos, go on with unfinished ones"
    )
    parser.add_argument(
        "--each_with_each",
        action="store_true",
        help="of a folder: every portrait with every speech, not those of the same name",
    )
    parser.add_argument("--jobs", type=int, metavar="N", help="so many at once (1; on Ray, its CPUs)")
    parser.add_argument("--executor", choices=EXECUTORS, default="local", help="where engines run (local)")
    parser.add_argument("--json", action="store_true", help="events as JSON lines on standard output")
    add_upscale_with(parser)
    add_notify(parser)
    add_checkpoint(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Make all videos; one failure does not stop the others."""
    if args.jobs is not None and args.jobs < 1:
        raise BadInput(f"--jobs is {args.jobs}.", "Take 1 or more.")
    upscale_with = upscale_words(args)
    wanted = read_jobs(args.jobs_file, all_with_all=args.each_with_each)
    check_upscale(wanted.entries, upscale_with)
    inventory = probe(args.ckpt_dir, outputs=args.output)
    if args.ckpt_dir is not None:
        refuse_unused_checkpoint(wanted.entries, inventory)
    num_jobs, opener = _executor(args, inventory)
    show = _show_json(wanted) if args.json else _show_bars(wanted)
    engines = Engines(opener, num_jobs)
    with notifying(args.notify_url) as post, Scratch() as work:
        batch = Batch(
            wanted.entries,
            args.output,
            work,
            inventory,
            resume=args.resume,
            upscale_with=upscale_with,
            may_grow=args.executor != "ray",  # a voice that goes on speaking is read from this machine's disk
        )
        try:
            with stopped_by_signals(batch.cancel) as stop, show as on_event:
                outcomes = batch.run(engines, num_jobs, _posting(post, on_event))
        finally:
            engines.close()
    if not args.json:
        _print(outcomes, wanted.left_out)
    return exit_code(outcomes, wanted.left_out, stop)


def check_upscale(entries: Sequence[BatchEntry], upscale_with: Sequence[str]) -> None:
    """Refuse a command that enlarges the videos where a job says otherwise. Raises: BadInput."""
    for entry in entries:
        asked = entry.options.get("upscale", "1080p")
        if upscale_with and asked != "1080p":
            raise BadInput(
                f"{entry.name}: upscale is {asked}, and --upscale_with is given.", "Leave one of them out."
            )


def exit_code(outcomes: list[Outcome], left_out: Sequence[SkippedFile] = (), stop: Stop | None = None) -> int:
    """0 if every video is there; else the code of the first failure, of a stop, or of files left out."""
    for outcome in outcomes:
        if outcome.error is not None:
            return outcome.error.exit_code
    if any(outcome.state == "stopped" for outcome in outcomes):
        return (stop or Stop()).exit_code
    return BadInput.exit_code if left_out else 0


def _executor(args: argparse.Namespace, inventory: Inventory) -> tuple[int, Open]:
    """The largest number of engines, and the function that opens one."""
    if args.executor == "ray":
        from avatar.batch.ray_engine import RayEngine, connect

        num_cpus = connect()
        return args.jobs or num_cpus, lambda preset, _: RayEngine(preset, args.ckpt_dir)
    num_jobs = args.jobs or 1

    def open_here(preset: Preset, place: int) -> Engine:
        gpus = gpus_of(preset, place, num_jobs, inventory)
        return open_engine(preset, weights=args.ckpt_dir, gpus=gpus)

    return num_jobs, open_here


@contextmanager
def _show_json(wanted: BatchJobs) -> Iterator[Any]:
    writing = threading.Lock()
    for left in wanted.left_out:
        write_json({"event": "left_out", "file": left.path, "why": left.why})

    def on_event(name: str, event: Event | Outcome) -> None:
        with writing:
            kind = type(event).__name__.lower()
            error = {"error": str(event.error)} if isinstance(event, Outcome) and event.error else {}
            fields = {key: value for key, value in vars(event).items() if key not in ("name", "error")}
            write_json({"event": kind, "job": name, **fields, **error})

    yield on_event


def _posting(post: Callable[[JobNews], None], on_event: OnEvent) -> OnEvent:
    """Wrap on_event to also post how each job ended, except for videos that were there already."""

    def report(name: str, event: Event | Outcome) -> None:
        if isinstance(event, Outcome) and event.state != "already":
            video = event.video.name if event.video else name
            post(JobNews(name, event.state, video, event.num_frames / FPS))
        on_event(name, event)

    return report


@contextmanager
def _show_bars(wanted: BatchJobs) -> Iterator[Any]:
    """One bar per job that runs or ran, and one for all; the files left out are printed before them."""
    entries: list[BatchEntry] = wanted.entries
    for left in wanted.left_out:
        console(sys.stderr).print(f"left out: {left.path.name} {left.why}", markup=False, soft_wrap=True)
    columns = (
        TextColumn("{task.description:<28}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with ProgressBar(*columns, console=console(sys.stderr)) as bar:
        overall = bar.add_task(f"all {len(entries)}", total=len(entries), state="")
        tasks: dict[str, Any] = {}
        shares: dict[str, float] = {}
        drawing = threading.Lock()

        def on_event(name: str, event: Event | Outcome) -> None:
            with drawing:
                if name not in tasks:
                    tasks[name] = bar.add_task(name[:28], total=None, state="")
                task = tasks[name]
                match event:
                    case Progress() if event.num_frames:
                        bar.update(
                            task, total=event.num_frames, completed=event.frames_done, state=_state(event)
                        )
                        shares[name] = event.frames_done / event.num_frames
                    case Notice(level="warning"):
                        bar.console.print(f"{name}: {event.text}", markup=False)
                    case Outcome():
                        shares[name] = 1.0
                        bar.update(task, state=_WORDS[event.state])
                        bar.stop_task(task)
                bar.update(overall, completed=sum(shares.values()))

        yield on_event


def _state(progress: Progress) -> str:
    parts = f", part {progress.parts_done}/{progress.num_parts}" if progress.num_parts else ""
    return f"{progress.phase}{parts}"


def _print(outcomes: list[Outcome], left_out: Sequence[SkippedFile]) -> None:
    table = Table("job", "", "frames", "took", "video or error")
    table.columns[2].justify = table.columns[3].justify = "right"
    for outcome in outcomes:
        words = str(outcome.error) if outcome.error else outcome.video.name if outcome.video else ""
        frames = str(outcome.num_frames or "")
        took = f"{outcome.elapsed_s:.0f} s"
        table.add_row(escape(outcome.name), _WORDS[outcome.state], frames, took, escape(words))
    for left in left_out:
        table.add_row(escape(left.path.name), "left out", "", "", escape(f"{left.path.name} {left.why}"))
    console().print(table)
