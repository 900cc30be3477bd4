"""`compare`: runs that differ in named settings, or finished videos, measured and shown side by side."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBar
from rich.table import Table

from avatar.batch.run import Outcome
from avatar.bench.untimed import refuse_untimed
from avatar.checkpoints.locations import Checkpoint
from avatar.commands.output import console, write_json
from avatar.commands.setting_flags import (
    add_checkpoint,
    add_picture,
    add_preset,
    chosen_picture,
    given_settings,
)
from avatar.commands.signals import Stop, stopped_by_signals
from avatar.commands.speaker_flags import add_speakers, chosen_speech
from avatar.commands.voice_flags import add_speaking
from avatar.compare.cells import Cell, read_vary
from avatar.compare.page import html
from avatar.compare.result import (
    FAILED,
    PAGE,
    SIDE_BY_SIDE,
    STOPPED,
    TABLE,
    WAITING,
    Comparison,
    open_folder,
    write,
)
from avatar.compare.runs import Runs, base_settings_of
from avatar.compare.table import grid, markdown, remarks
from avatar.compare.timed_cells import TimedRuns
from avatar.compose.side_by_side import MOST_VIDEOS, side_by_side
from avatar.errors import BadInput
from avatar.events import Event, Progress
from avatar.hardware.inventory import probe
from avatar.long.job import LONGEST
from avatar.long.job_speech import JobSpeech, spoken_dialogue, spoken_text
from avatar.long.ledger import SPOKEN
from avatar.media.readers import Reader
from avatar.media.speaker_choice import NAMES, AskedSpeakers
from avatar.request import TRANSPARENT
from avatar.runtime.factory import open_engine
from avatar.runtime.rescued_files import kept_outside
from avatar.runtime.scratch import Scratch
from avatar.settings import Picture
from avatar.speech.narration import Script

BLOCKS = 32  # per timed run


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "compare",
        help="compare settings or finished videos by measurement",
        description=__doc__,
        epilog="The folder gets compare.json, compare.md, compare.html (plays the videos in step) and "
        f"{SIDE_BY_SIDE}. Run it again after a kill: what is there is not made again.",
        allow_abbrev=False,
    )
    parser.add_argument("videos", type=Path, nargs="*", metavar="VIDEO", help="finished videos")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the comparison's folder")
    parser.add_argument(
        "--vary",
        action="append",
        default=[],
        metavar="NAME=A,B",
        help="make videos that differ in a setting, or in preset; several: each with each",
    )
    parser.add_argument(
        "--image", type=Path, metavar="FILE", help="the portrait, which faces are compared with"
    )
    parser.add_argument(
        "--audio", type=Path, metavar="FILE", help="the speech of the videos to make; or --text, --speaker"
    )
    parser.add_argument("--points", type=Path, metavar="FILE.json", help="face points of a drawn portrait")
    parser.add_argument(
        "--pose", "--pose_video", type=Path, metavar="FILE", help="a video of poses, for the diffusion engine"
    )
    parser.add_argument(
        "--label", action="append", default=[], metavar="TEXT", help="of each video, in order"
    )
    parser.add_argument(
        "--clip_frames", type=int, metavar="N", help="frames per clip, if no report states it"
    )
    parser.add_argument("--no_side_by_side", action="store_true", help=f"do not make {SIDE_BY_SIDE}")
    parser.add_argument(
        "--font", type=Path, metavar="FILE", help="for labels that Latin letters do not spell"
    )
    parser.add_argument(
        "--random_weights", action="store_true", help="time each with random weights: no checkpoint, no video"
    )
    parser.add_argument(
        "--blocks",
        type=int,
        metavar="N",
        help=f"of each timed run, 12 frames each ({BLOCKS})",
    )
    parser.add_argument("--json", action="store_true", help="print compare.json on standard output")
    add_checkpoint(parser)
    add_preset(parser)
    add_picture(parser)
    add_speakers(parser)
    add_speaking(parser, without=("captions",))
    parser.set_defaults(run=run, preset=None)


def run(args: argparse.Namespace) -> int:
    """Generate, measure, and write the comparison; the exit code is nonzero if any row failed."""
    settings = given_settings(args)
    cells = read_vary(args.vary) if args.vary else []
    script, speakers = chosen_speech(args)
    _check(args, settings, cells, script, speakers)
    if args.videos:
        from avatar.compare.videos import add_videos, check_videos  # needs OpenCV, so only imported here

        check_videos(args.videos, args.label)
    before = open_folder(args.output)
    portrait, speech = (None if path is None else path.name for path in (args.image, args.audio))
    speech = script.title if script else speakers.name if speakers and not speech else speech
    comparison = Comparison(args.output, [], portrait, speech)
    stop = Stop()
    with Scratch() as work, kept_outside(args.output / SIDE_BY_SIDE):
        if args.videos:
            add_videos(comparison, args.videos, args.label)
        elif args.random_weights:
            stop = _time(args, comparison, cells, settings, before)
        else:
            if script is not None or (speakers is not None and any(one.text for one in speakers.speakers)):
                comparison.save()  # killed while a text is spoken, it is known for a comparison
            with _spoken(args, script, speakers, work) as said:
                stop = _make(args, comparison, cells, settings, before, work, said)
        comparison.save()
        if stop.number is None:
            _measure(args, comparison, before)
            _show_beside(args, comparison, work)
    write(args.output / TABLE, markdown(comparison))
    write(args.output / PAGE, html(comparison))
    comparison.save()
    _print(comparison, args.json)
    states = {row.state for row in comparison.rows}
    if stop.number is not None or states & {STOPPED, WAITING}:
        return stop.exit_code
    return 1 if FAILED in states else 0


def _check(
    args: argparse.Namespace,
    settings: dict[str, Any],
    cells: Sequence[Cell],
    script: Script | None,
    speakers: AskedSpeakers | None,
) -> None:
    """Refuse contradictory arguments. Raises: BadInput."""
    picture = chosen_picture(args)
    own = speakers is not None and speakers.split in ("", NAMES)  # no recording of all
    num_speeches = (args.audio is not None) + (script is not None) + own
    shown = args.points or args.pose or picture != Picture()
    given = (args.vary, args.random_weights, args.ckpt_dir, args.preset)
    made = (*given, num_speeches, speakers, settings, shown)
    if args.videos and any(made):
        raise BadInput("Finished videos are compared as they are.", "Leave out what would make others.")
    if not args.videos and not args.vary:
        remedy = "Give videos, or --vary NAME=A,B with --image and --audio, --text or --speaker."
        raise BadInput("There is nothing to compare.", remedy)
    if args.vary and args.label:
        raise BadInput("Videos that are made are labelled by what differs.", "Leave out --label.")
    if args.vary and args.clip_frames is not None:
        raise BadInput("The reports of videos that are made state their clips.", "Leave out --clip_frames.")
    if args.clip_frames is not None and args.clip_frames < 2:
        raise BadInput(f"--clip_frames is {args.clip_frames}.", "Take 2 or more.")
    if args.blocks is not None and not args.random_weights:
        raise BadInput("--blocks is for timed runs.", "Take it with --random_weights, or leave it out.")
    if args.no_side_by_side and args.font:
        raise BadInput(f"--font is for {SIDE_BY_SIDE}, which is not to be made.", "Leave out one of the two.")
    if args.random_weights:
        files = (args.image, num_speeches, speakers, shown, args.ckpt_dir, args.no_side_by_side, args.font)
        if any(files):
            raise BadInput(
                "With --random_weights no files are used, and no videos are made.",
                "Leave out image, speech, speakers, points, pose, weights, font, no_side_by_side, and what is"
                " shown of the portrait.",
            )
        refuse_untimed([*settings, *(name for cell in cells for name in cell.settings)], random_weights=True)
    if picture.background == TRANSPARENT:
        raise BadInput("Transparent videos are not compared side by side.", "Choose another --background.")
    if args.vary and not args.random_weights and not (args.image and num_speeches):
        raise BadInput(
            "Videos are made from a portrait and speech.", "Give --image, and --audio, --text or --speaker."
        )
    if num_speeches > 1:
        raise BadInput("There is more than one speech.", "Give one of --audio, --text and --speaker.")
    if args.image:
        Reader().portrait(args.image)
    if args.audio:
        Reader().judge(args.audio)


def _make(
    args: argparse.Namespace,
    comparison: Comparison,
    cells: Sequence[Any],
    settings: dict[str, Any],
    before: dict[str, Any],
    work: Path,
    said: JobSpeech,
) -> Stop:
    base_settings = base_settings_of(args.preset, settings, cells)
    for name in ("points", "pose"):
        if (path := getattr(args, name)) is not None:
            base_settings[name] = str(path)
    runs = Runs(
        comparison,
        cells,
        image=args.image,
        audio=said.path,
        base_settings=base_settings,
        before=before,
        inventory=probe(args.ckpt_dir, outputs=args.output),
        work=work,
        picture=chosen_picture(args),
        names_checkpoint=args.ckpt_dir is not None,
        speakers=said.speakers,
    )
    with _bar() as bar, stopped_by_signals(runs.cancel) as stop:

        def on_event(name: str, event: Event | Outcome) -> None:
            if isinstance(event, Progress):
                bar(f"{name}: {event.phase}", event.frames_done, event.num_frames)

        runs.make(lambda preset, _: open_engine(preset, weights=args.ckpt_dir), on_event)
    return stop


@contextmanager
def _spoken(
    args: argparse.Namespace, script: Script | None, speakers: AskedSpeakers | None, work: Path
) -> Iterator[JobSpeech]:
    """What all of the videos say: texts are spoken once, and kept in the comparison's folder.

    Raises: AvatarError.
    """
    kept = args.output / SPOKEN
    if script is not None:
        with spoken_text(script, work, LONGEST, kept, may_grow=False) as said:
            said.keep(kept)
            yield replace(said, path=kept)
    elif speakers is not None and speakers.is_typed:
        said = spoken_dialogue(speakers, work, LONGEST, kept)
        said.keep(kept)
        yield said if said.path is None else replace(said, path=kept)
    else:
        yield JobSpeech(args.audio, speakers=speakers)


def _time(
    args: argparse.Namespace,
    comparison: Comparison,
    cells: Sequence[Any],
    settings: dict[str, Any],
    before: dict[str, Any],
) -> Stop:
    inventory = replace(probe(), checkpoint=Checkpoint(complete=True))
    runs = TimedRuns(
        comparison,
        cells,
        base_settings=base_settings_of(args.preset, settings, cells),
        before=before,
        inventory=inventory,
        num_blocks=BLOCKS if args.blocks is None else args.blocks,
    )
    with stopped_by_signals(runs.cancel) as stop:
        runs.make(lambda label: console(sys.stderr).print(f"timing {label}", markup=False))
    return stop


def _measure(args: argparse.Namespace, comparison: Comparison, before: dict[str, Any]) -> None:
    from avatar.compare.measuring import measure_row  # imports OpenCV and the face models

    with _bar() as bar:
        for row in comparison.rows:
            if row.file is None:
                continue
            measure_row(
                comparison,
                row,
                before.get(row.name, {}),
                portrait=args.image,
                clip_frames=args.clip_frames,
                on_frame=lambda done, name=row.name: bar(f"{name}: measuring", done, None),  # type: ignore[misc]
            )
            comparison.save()


def _show_beside(args: argparse.Namespace, comparison: Comparison, work: Path) -> None:
    shown = [(row.label, comparison.folder / row.file) for row in comparison.rows if row.file]
    if args.no_side_by_side or not shown:
        return
    if len(shown) > MOST_VIDEOS:
        comparison.notes.append(f"{SIDE_BY_SIDE} shows the first {MOST_VIDEOS} of {len(shown)} videos.")
    place = comparison.folder / SIDE_BY_SIDE
    side_by_side(shown[:MOST_VIDEOS], place, work, portrait=args.image, font=args.font)
    comparison.side_by_side = SIDE_BY_SIDE


@contextmanager
def _bar() -> Iterator[Callable[[str, int, int | None], None]]:
    """A progress bar on standard error: a function of description, done and total."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with ProgressBar(*columns, console=console(sys.stderr)) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda words, done, total: bar.update(task, description=words, completed=done, total=total)


def _print(comparison: Comparison, as_json: bool) -> None:
    if as_json:
        write_json(json.loads(json.dumps(comparison.as_dict())))
        return
    heads, cells = grid(comparison)
    table = Table(*heads[:1], *(row[0] for row in cells), show_lines=False)
    for at, head in enumerate(heads[1:], 1):
        table.add_row(escape(head), *(escape(row[at]) for row in cells))
    out = console()
    out.print(table)
    for text in remarks(comparison):
        out.print(text, markup=False, soft_wrap=True)
    out.print(str(comparison.folder / PAGE), markup=False, soft_wrap=True)
