"""`generate`: one video file from one portrait and one speech, recorded or typed."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBar

from avatar.batch.engines import gpus_of
from avatar.commands.output import console, write_json
from avatar.commands.setting_flags import (
    add_checkpoint,
    add_long,
    add_picture,
    add_preset,
    chosen_picture,
    chosen_preset,
)
from avatar.commands.signals import stopped_by_signals
from avatar.commands.speaker_flags import add_speakers, chosen_speech
from avatar.commands.upscale_flag import add_upscale_with, upscale_words
from avatar.commands.voice_flags import add_speaking
from avatar.commands.webhook_flag import add_notify, notifying
from avatar.errors import BadInput, Cancelled
from avatar.events import Event, Finished, Notice, PartDone, PlanMade, Progress, Segment
from avatar.hardware.inventory import Inventory, probe
from avatar.long.job import Job
from avatar.media.background.choice import suffix_of
from avatar.media.files import joined_name, minutes
from avatar.media.growing import settled
from avatar.media.portrait import video_size
from avatar.media.speaker_choice import NAMES
from avatar.planning.layout import Layout
from avatar.planning.verdict import require, within_reach
from avatar.preset import Preset
from avatar.request import Request
from avatar.runtime.engine import Engine, warm_up
from avatar.runtime.factory import open_engine
from avatar.runtime.rescued_files import kept_outside
from avatar.runtime.scratch import Scratch
from avatar.runtime.torchrun_client import Address, secret
from avatar.runtime.webhook import JobNews

OUTPUTS = Path("outputs")


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "generate", help="make a video from a portrait and speech", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("--image", type=Path, required=True, metavar="FILE", help="the portrait")
    parser.add_argument(
        "--audio", type=Path, metavar="FILE", help="the speech; or --text, --text_file, --speaker"
    )
    parser.add_argument(
        "--output",
        "--save_file",
        type=Path,
        metavar="FILE.mp4",
        help="the video (outputs/IMAGE-AUDIO-TIME.mp4); a transparent one: .webm or .mov",
    )
    parser.add_argument(
        "--points", type=Path, metavar="FILE.json", help="face points of a drawn portrait (IMAGE.json)"
    )
    parser.add_argument(
        "--head_only", action="store_true", default=None, help="move the head, keep the mouth shut"
    )
    parser.add_argument(
        "--pose",
        "--pose_video",
        type=Path,
        metavar="FILE",
        help="a video of poses, as DWPose draws them on black, for the diffusion engine; where it ends before"
        " the speech it goes on in black",
    )
    parser.add_argument("--max_duration", type=float, metavar="S", help="refuse longer speech; seconds")
    add_long(parser)
    parser.add_argument(
        "--resume", action="store_true", help="go on with a video whose making was ended, by its --output"
    )
    parser.add_argument("--json", action="store_true", help="events as JSON lines on standard output")
    parser.add_argument(
        "--attach",
        default=os.environ.get("AVATAR_ATTACH"),
        metavar="HOST:PORT",
        help="let ranks make it that torchrun started elsewhere ($AVATAR_ATTACH); see `worker`",
    )
    add_notify(parser)
    add_checkpoint(parser)
    add_preset(parser)
    add_picture(parser)
    add_speakers(parser)
    add_speaking(parser)
    add_upscale_with(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check everything, open the engine, follow its events to the end."""
    script, speakers = chosen_speech(args)
    own = speakers is not None and speakers.split in ("", NAMES)  # no recording of all
    if (args.audio is not None) + (script is not None) + own != 1:
        given = args.audio is not None or script is not None or own
        both = "Both speech and a text are given." if given else "There is neither speech nor a text."
        raise BadInput(both, "Give one of --audio, --text, --text_file and --speaker.")
    picture, upscale_with = chosen_picture(args), upscale_words(args)
    spoken_name = (
        args.audio or args.text_file or Path(f"{speakers.stem or 'text'}.wav" if speakers else "text")
    )
    output = args.output or _output_name(args.image, spoken_name, suffix_of(picture.background))
    inventory = probe(args.ckpt_dir, outputs=output.parent)
    num_speakers = 1 if speakers is None else speakers.num_speakers
    named = ("points", "head_only", "ckpt_dir", "pose")
    flags = tuple(name for name in named if getattr(args, name) is not None)
    preset = chosen_preset(args, inventory, (*flags, *picture.demands), num_speakers)
    if args.attach is None:
        preset = require(preset, inventory, num_speakers=num_speakers).preset
        if args.preset == "auto":
            _report_within_reach(inventory, args.json)
    else:
        check_attached(preset, args)
    job = Job(
        image=args.image,
        audio=args.audio,
        output=output,
        preset=preset,
        script=script,
        points=args.points,
        head_only=bool(args.head_only),
        pose=args.pose,
        picture=picture,
        speakers=speakers,
        max_duration_s=args.max_duration,
        checkpoint_every=args.checkpoint_every,
        independent=args.independent,
        keep_parts=args.keep_parts,
        resume=args.resume,
        tokenizer=inventory.checkpoint.tokenizer if args.attach is None else None,
        may_grow=args.attach is None,
    ).upscaled_with(upscale_with)
    engines: list[Engine] = []

    def start(place: int) -> None:
        gpus = None
        if args.attach is None:
            gpus = gpus_of(preset, place, args.jobs, inventory, num_speakers)
        engines.append(open_engine(preset, weights=args.ckpt_dir, gpus=gpus, attach=args.attach))
        closing.callback(engines[-1].close)
        if not place:
            warm_up(engines[0])  # its process starts while the portrait is looked at

    with (
        notifying(args.notify_url) as post,
        Scratch() as work,
        kept_outside(output),
        ExitStack() as closing,
    ):
        if _starts_at_once(preset, args):
            start(0)
        opened = closing.enter_context(job.opened(work))
        if opened.finished is not None:
            return _report_finished(opened.finished, args.json)
        opened.check_engines(args.jobs)
        for place in range(len(engines), args.jobs):
            start(place)
        with _posting_end(opened.request, post) as ends:
            return _follow(opened.engine(engines), opened.request, args.json, ends)


def _starts_at_once(preset: Preset, args: argparse.Namespace) -> bool:
    """Whether an engine's process starts before portrait and speech are read: on a GPU that takes longest.

    A request that is then refused ends it; it has loaded no model by then.
    """
    return preset.num_gpus > 0 and args.jobs == 1 and args.attach is None and not args.resume


def _report_within_reach(inventory: Inventory, as_json: bool) -> None:
    """Report if the GPUs could run a better preset than `auto` picks, and what prevents it."""
    better = within_reach(inventory)
    if better is None:
        return
    text = f"The GPUs here could run {better.preset.name}. {' '.join(better.missing)} {better.remedy}"
    if as_json:
        write_json({"event": "notice", "code": "within_reach", "text": text, "level": "warning"})
    else:
        console(sys.stderr).print(f"warning: {text}", markup=False, soft_wrap=True)


def check_attached(preset: Preset, args: argparse.Namespace) -> None:
    """Refuse options that ranks elsewhere cannot honour. Raises: BadInput."""
    Address.parse(args.attach)
    secret()
    if preset.engine != "diffusion":
        raise BadInput(
            f"Preset {preset.name!r} has no ranks to attach to.", "Name the ranks' own with --preset."
        )
    if args.jobs != 1:
        raise BadInput("Ranks make one video at a time.", "Leave out --jobs, or --attach.")
    if args.ckpt_dir is not None:
        raise BadInput("The ranks have weights of their own.", "Leave out --ckpt_dir, or --attach.")
    Layout.of(preset)


@contextmanager
def _posting_end(request: Request, post: Callable[[JobNews], None]) -> Iterator[list[Finished]]:
    """Post how a run ends, in every case; its Finished event is to be appended to the list yielded."""
    ends: list[Finished] = []
    state = "failed"
    try:
        yield ends
        state = "stopped" if ends[-1].stopped else "done"
    except (Cancelled, KeyboardInterrupt):
        state = "stopped"
        raise
    finally:
        name = f"{request.portrait_name} · {request.speech_name}"
        post(JobNews(request.output.stem, state, name, ends[-1].duration_s if ends else 0.0))


def _follow(engine: Engine, request: Request, as_json: bool, ends: list[Finished]) -> int:
    """Show the events of a run; Ctrl-C stops it and keeps what was made. Returns the exit code."""
    from avatar.preview.portrait_notices import (
        portrait_notices,  # imports OpenCV and the face models; only for a run
    )

    finished: Finished | None = None
    show = _show_json(request) if as_json else _show_bar(request)
    with stopped_by_signals(engine.cancel) as stop, show as on_event:
        for notice in portrait_notices(request):
            on_event(notice)
        for event in engine.stream(request):
            if stop.number is not None:  # the signal may have come before the engine had begun
                engine.cancel()
            on_event(event)
            if isinstance(event, Finished):
                finished = event
                ends.append(event)
        if finished is None:
            raise Cancelled("Stopped before the first frame was made.")
    if not as_json:
        sys.stdout.write(f"{finished.video}\n")
    return stop.exit_code if finished.stopped else 0


def _report_finished(video: Path, as_json: bool) -> int:
    """Report that a resumed video was finished already."""
    if as_json:
        write_json({"event": "already_finished", "video": video})
    else:
        sys.stdout.write(f"{video}\n")
    return 0


@contextmanager
def _show_json(request: Request) -> Iterator[Any]:
    preset, size = request.preset, video_size(request.portrait, request.preset)
    started = {"preset": preset.name, "engine": preset.engine, "num_frames": settled(request).num_frames}
    started |= {"width": size.width, "height": size.height}
    write_json({"event": "started", **started})
    yield lambda event: write_json(_as_json(event))


@contextmanager
def _show_bar(request: Request) -> Iterator[Any]:
    """A progress bar on standard error, with notices above it."""
    err = console(sys.stderr)
    size = video_size(request.portrait, request.preset)
    words = f"preset {request.preset.name}, {request.preset.engine} engine, {size.width}×{size.height} pixels"
    err.print(words, markup=False)
    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[pace]}"),
        TimeElapsedColumn(),
    )
    with ProgressBar(*columns, console=err) as bar:
        task = bar.add_task("starting", total=settled(request).num_frames, pace="")

        def on_event(event: Event) -> None:
            match event:
                case Progress():
                    bar.update(
                        task,
                        description=str(event.activity or event.phase),
                        completed=event.frames_done,
                        total=event.num_frames or None,
                        pace=_pace(event),
                        refresh=True,
                    )
                case Notice():
                    bar.console.print(f"{event.level}: {event.text}", markup=False)
                case Finished():
                    bar.update(task, completed=event.num_frames, pace="")
                    kept = "stopped, kept" if event.stopped else "done:"
                    bar.console.print(
                        f"{kept} {event.num_frames} frames, {event.duration_s:.1f} s", markup=False
                    )
                case PartDone():
                    bar.console.print(f"part {event.index + 1} of {event.num_parts} is kept", markup=False)
                case Segment():
                    pass  # only the page plays segments; here the bar counts them

        yield on_event


def _pace(progress: Progress) -> str:
    """ "segment 3/12, 101 fps, 9 s left" """
    words = []
    if progress.num_parts:
        words.append(f"part {min(progress.parts_done + 1, progress.num_parts)}/{progress.num_parts}")
    elif progress.num_segments:
        words.append(f"segment {progress.segments_done}/{progress.num_segments}")
    if progress.fps is not None:
        words.append(f"{progress.fps:.0f} fps")
    busiest = progress.bottleneck
    if busiest is not None:
        where = " ".join(word for word in (busiest.place, busiest.role) if word)
        words.append(f"busiest: {where} {busiest.busy_percent:.0f} %")
    if progress.eta_s is not None:
        words.append(
            f"{minutes(progress.eta_s)} left" if progress.eta_s >= 120 else f"{progress.eta_s:.0f} s left"
        )
    return ", ".join(words)


def _output_name(image: Path, audio: Path, suffix: str) -> Path:
    return OUTPUTS / f"{joined_name(image.stem, audio.stem, f'{datetime.now():%Y%m%d-%H%M%S}')}{suffix}"


def _as_json(event: Event) -> dict[str, Any]:
    """One event for programs: its name and fields; a plan as `plan --json` prints it."""
    if isinstance(event, PlanMade):
        return {"event": "plan", **event.plan.as_dict()}
    return {"event": type(event).__name__.lower(), **asdict(event)}
