"""`download`: fetch the weights; files that are there already are not fetched again."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as ProgressBar

from avatar.checkpoints.locations import (
    DEFAULT_FOLDER,
    DIFFUSERS,
    OFFICIAL,
    find_checkpoint,
    remember,
    tiny_decoder_home,
)
from avatar.commands.output import console, write_json
from avatar.errors import BadInput
from avatar.settings import SETTINGS

if TYPE_CHECKING:
    from avatar.checkpoints.download import Notify, Progress

    Showing = Callable[[], AbstractContextManager[tuple[Progress, Notify]]]

LAYOUTS = ("official", "diffusers")
SOURCES = ("hub", "modelscope")


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "download",
        help="fetch the weights, 47.1 GB",
        description=__doc__,
        epilog="HF_HOME, HF_ENDPOINT, HF_TOKEN and HTTPS_PROXY are honoured. Stop it at any time: it goes on"
        " where it was.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--ckpt_dir",
        type=Path,
        metavar="DIR",
        help="the folder to put everything in that is not there in some form already; it is looked in from"
        " then on (the hub's own cache, without the parts that are found elsewhere)",
    )
    parser.add_argument(
        "--only_missing",
        action="store_true",
        help="with --ckpt_dir: leave out the parts that are found elsewhere, too",
    )
    parser.add_argument(
        "--revision",
        action="append",
        default=[],
        metavar="[REPO=]REV",
        help="a branch, tag or commit instead of the pinned one, of every repository or of one; may be given"
        " several times",
    )
    parser.add_argument(
        "--layout", choices=LAYOUTS, default="official", help="the base model as published, or repacked"
    )
    parser.add_argument(
        "--from",
        dest="source",
        choices=SOURCES,
        default="hub",
        help="where the base model comes from; the LoRA is on the hub alone",
    )
    parser.add_argument(
        "--decoder",
        choices=SETTINGS["decoder"].choices,
        default=SETTINGS["decoder"].default,
        help="tiny: the file of the tiny decoder as well, 23 MB, from GitHub",
    )
    parser.add_argument("--json", action="store_true", help="progress as JSON lines on standard output")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Download the needed files and print their folders."""
    from avatar.checkpoints.download import DIFFUSERS_REPOS, REPOS, TAEHV, download, needed_repos

    if args.only_missing and args.ckpt_dir is None:
        raise BadInput("--only_missing goes with --ckpt_dir.", "Leave it out: it is always so without.")
    if args.only_missing and args.source != "hub":
        raise BadInput("ModelScope gives the whole base model.", "Leave out --only_missing, or --from.")
    repos, layout, small = REPOS, OFFICIAL, args.decoder == "tiny"
    showing = _as_json if args.json else _as_bar
    if args.layout == "diffusers":
        repos, layout = DIFFUSERS_REPOS, DIFFUSERS
    revision = revisions(args.revision, [repo.name for repo in repos])
    if args.source == "modelscope":
        folders = _from_modelscope(args, revision, showing)
        repos = REPOS
    else:
        found = find_checkpoint(args.ckpt_dir)
        if args.ckpt_dir is None or args.only_missing or layout is OFFICIAL:
            only = args.only_missing or args.ckpt_dir is None
            repos = needed_repos(found, layout, args.ckpt_dir, only_missing=only)
            _refuse_unused(revision, [repo.name for repo in repos])
        if args.ckpt_dir is None:
            small &= found.tiny_decoder is None or found.tiny_decoder.parent == tiny_decoder_home()
        if repos or small:
            with showing() as (progress, notify):
                folders = download(
                    repos, revision, args.ckpt_dir, progress, notify=notify, tiny_decoder=small
                )
        else:
            folders = []
    is_complete = find_checkpoint(args.ckpt_dir).complete
    if args.ckpt_dir is not None and is_complete:
        remember(args.ckpt_dir)
    if args.json:
        write_json({"event": "finished", "folders": folders})
        return 0
    repos = (*repos, TAEHV) if small else repos
    for repo, folder in zip(repos, folders, strict=True):
        console().print(f"{repo.name}: {folder}", markup=False, soft_wrap=True)
    if is_complete:
        words = "The model is complete. `python -m avatar doctor` says what runs here."
        console().print(words, markup=False)
    return 0


def _refuse_unused(revision: dict[str, str], names: list[str]) -> None:
    """Raises: BadInput for the revision of a repository from which nothing is fetched."""
    for name in revision.keys() - set(names):
        raise BadInput(
            f"All that is needed of {name} is in a folder of yours: --revision would change nothing.",
            "Leave --revision out, or name another folder for that revision with --ckpt_dir.",
        )


def _from_modelscope(args: argparse.Namespace, revision: dict[str, str], showing: Showing) -> list[Path]:
    """The base model from ModelScope, the LoRA from the hub. Raises: BadInput, and as download does."""
    from avatar.checkpoints.download import LORA, download
    from avatar.checkpoints.modelscope import download_base

    if args.layout != "official":
        raise BadInput("ModelScope has the official layout alone.", "Leave out --layout, or --from.")
    target = args.ckpt_dir or Path(DEFAULT_FOLDER)
    base = download_base(target, revision.get(OFFICIAL.repo))
    small = args.decoder == "tiny"
    with showing() as (progress, notify):  # from here on: ModelScope's library shows bars of its own
        more = download((LORA,), revision, target, progress, notify=notify, tiny_decoder=small)
    return [base, *more]


def revisions(given: list[str], names: list[str]) -> dict[str, str]:
    """The revision of each repository that has one, from REV (for all) and REPO=REV (for one).

    Raises: BadInput for a repository that is not downloaded.
    """
    found: dict[str, str] = {}
    for text in sorted(given, key=lambda text: "=" in text):
        name, _, revision = text.rpartition("=")
        if name and name not in names:
            raise BadInput(f"{name!r} is not fetched.", f"Repositories: {', '.join(names)}.")
        found |= dict.fromkeys([name] if name else names, revision)
    return found


@contextmanager
def _as_json() -> Iterator[tuple[Progress, Notify]]:
    """Progress and notices as JSON lines."""

    def progress(done: int, total: int) -> None:
        write_json({"event": "progress", "done_bytes": done, "total_bytes": total})

    yield progress, lambda text: write_json({"event": "notice", "text": text})


@contextmanager
def _as_bar() -> Iterator[tuple[Progress, Notify]]:
    """One bar for all files, on standard error, with what is left and how fast it comes."""
    from avatar.checkpoints.hub_errors import GO_ON

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with ProgressBar(*columns, console=console(sys.stderr), transient=True) as bar:
        task = bar.add_task("asking what is missing", total=None)

        def progress(done: int, total: int) -> None:
            words = "fetching the model" if total else "nothing is missing"
            bar.update(task, description=words, completed=done, total=total)

        try:
            yield progress, lambda text: bar.console.print(text, markup=False, soft_wrap=True)
        except KeyboardInterrupt:
            bar.console.print(GO_ON, markup=False)
            raise
