"""`doctor`: what this machine has, what each preset lacks, and what to do about it."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from rich.markup import escape
from rich.table import Table

from avatar.commands.output import console, write_json
from avatar.commands.setting_flags import add_checkpoint
from avatar.planning.verdict import Verdict
from avatar.preset import Preset
from avatar.runtime import doctor

NAMES_WIDTH = 24  # of the column of presets, several of which may share a row
NAMES = {  # of the checks on a GPU
    "compile": "compiled code",
    "cudnn": "cuDNN attention",
    "attention": "8-bit attention",
    "kernels": "our own kernels",
    "fp8": "fp8 products",
    "int8": "int8 products",
    "pinned": "pinned memory",
    "segments": "growing segments",
}


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "doctor", help="what runs here, what is missing", description=__doc__, allow_abbrev=False
    )
    parser.add_argument(
        "--preset", metavar="NAME", help="check only this preset: exit code 0 if it runs here"
    )
    parser.add_argument(
        "--self_test", action="store_true", help="also run the diffusion engine on a toy model; takes a while"
    )
    parser.add_argument("--json", action="store_true", help="as JSON")
    add_checkpoint(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the findings; the exit code is 0 when --preset, or any preset at all, runs here."""
    diagnosis = doctor.examine(args.ckpt_dir, args.preset)
    if not args.json:
        _print(diagnosis)
    tested = doctor.self_test() if args.self_test else None  # raises the command's error if it fails
    if args.json:
        write_json({**diagnosis.as_dict(), "self_test": tested and asdict(tested)})
    elif tested:
        console().print(
            f"Self-test: the diffusion engine made {tested.num_frames} frames of noise from a toy model "
            f"in {tested.elapsed_s:.0f} s, as it should.",
            markup=False,
        )
    return diagnosis.exit_code


def _print(diagnosis: doctor.Diagnosis) -> None:
    out = console()
    machine = Table("this machine", "")
    for name, value in diagnosis.machine:
        machine.add_row(name, escape(value))
    out.print(machine)
    presets = Table("preset", "runs here", "what to do")
    presets.columns[0].max_width = NAMES_WIDTH
    for names, here in _alike(diagnosis.presets):
        words = "yes" if here.ok else "\n".join(f"- {line}" for line in here.missing)
        presets.add_row(", ".join(names), escape(words), escape(here.remedy))
    out.print(presets)
    for device in diagnosis.devices:
        tried = Table(escape(device.name), "works", "otherwise")
        for check in device.checks:
            works = {True: "yes", False: "no", None: "not on this card"}[check.ok]
            cost = "" if check.ok else f"{check.text} {check.reason}".strip()
            tried.add_row(NAMES[check.code], works, escape(cost))
        out.print(tried)
    for fault in diagnosis.faults:
        out.print(f"fault: {fault}", markup=False)
    out.print(diagnosis.verdict, markup=False)


def _alike(presets: Iterable[tuple[Preset, Verdict]]) -> Iterator[tuple[list[str], Verdict]]:
    """Names of presets that lack the same, in order, each set with its verdict."""
    found: dict[tuple[str, ...], tuple[list[str], Verdict]] = {}
    for preset, here in presets:
        names, _ = found.setdefault((here.remedy, *here.missing), ([], here))
        names.append(preset.name)
    yield from found.values()
