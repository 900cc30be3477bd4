"""`presets`: which presets there are, and which of them run here."""

from __future__ import annotations

import argparse
from typing import Any

from rich.markup import escape
from rich.table import Table

from avatar.commands.output import console, write_json
from avatar.commands.setting_flags import add_checkpoint
from avatar.hardware.inventory import probe
from avatar.planning.verdict import judge
from avatar.preset import Preset, load_presets


def add(commands: Any) -> None:
    parser = commands.add_parser("presets", help="list the presets", description=__doc__, allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="as JSON")
    add_checkpoint(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print every preset with its needs, its output, and what is missing here."""
    inventory = probe(args.ckpt_dir)
    presets = load_presets()
    found = [(preset, judge(preset, inventory, presets)) for preset in presets]
    if args.json:
        write_json([{**preset.as_dict(), "availability": here.as_dict()} for preset, here in found])
        return 0
    table = Table("preset", "needs", "gives", "here")
    why = inventory.no_gpu_reason
    for preset, here in found:
        words = "yes" if here.ok else here.missing[0].removesuffix(f" {why}")
        if preset.engine == "auto" and here.ok:
            words = f"takes {here.preset.name}"
        table.add_row(preset.name, needs(preset), preset.summary, escape(words))
    out = console()
    out.print(table)
    lines = [why] if why else []
    lines.append("`python -m avatar doctor` says what to do about what is missing.")
    out.print(" ".join(lines), markup=False)
    return 0


def needs(preset: Preset) -> str:
    """A preset's requirements, in words: "4 GPUs of 22 GiB, weights"; the plan decides whether it fits."""
    requires = preset.requires
    words = []
    if requires.num_gpus:
        words.append(
            f"{requires.num_gpus} GPU{'s' if requires.num_gpus > 1 else ''} of {requires.vram_gib:g} GiB"
        )
    if requires.weights == "live-avatar":
        words.append("weights")
    return ", ".join(words) or "nothing"
