"""`download`: fetch the weights from the Hugging Face hub; what is there already is not fetched again."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from avatar.commands.output import console, write_json
from avatar.errors import BadInput

LAYOUTS = ("official", "diffusers")


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "download",
        help="fetch the weights, 60 GB",
        description=__doc__,
        epilog="HF_HOME, HF_ENDPOINT and HF_TOKEN are honoured.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--ckpt_dir", type=Path, metavar="DIR", help="the folder to put them in (the hub's own cache)"
    )
    parser.add_argument(
        "--revision",
        action="append",
        default=[],
        metavar="[REPO=]REV",
        help="a branch, tag or commit, of every repository or of one; may be given several times",
    )
    parser.add_argument(
        "--layout", choices=LAYOUTS, default="official", help="the base model as published, or repacked"
    )
    parser.add_argument("--json", action="store_true", help="progress as JSON lines on standard output")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Fetch both repositories and print where they are."""
    from avatar.planning.download import DIFFUSERS_REPOS, REPOS, download

    repos = DIFFUSERS_REPOS if args.layout == "diffusers" else REPOS
    revision = revisions(args.revision, [repo.name for repo in repos])
    folders = download(repos, revision, args.ckpt_dir, _tell if args.json else None)
    if args.json:
        write_json({"event": "finished", "folders": folders})
    else:
        for repo, folder in zip(repos, folders, strict=True):
            console().print(f"{repo.name}: {folder}", markup=False, soft_wrap=True)
    return 0


def revisions(given: list[str], names: list[str]) -> dict[str, str]:
    """A revision for each repository that has one: REV for all, then REPO=REV for one.

    Raises: BadInput for a repository that is not fetched.
    """
    found: dict[str, str] = {}
    for text in sorted(given, key=lambda text: "=" in text):
        name, _, revision = text.rpartition("=")
        if name and name not in names:
            raise BadInput(f"{name!r} is not fetched.", f"Repositories: {', '.join(names)}.")
        found |= dict.fromkeys([name] if name else names, revision)
    return found


def _tell(done: int, total: int) -> None:
    write_json({"event": "progress", "done_bytes": done, "total_bytes": total})
