"""`plan`: what a preset will hold in memory, on this machine or on an imagined one, before anything loads."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.table import Table

from avatar.commands.output import console, write_json
from avatar.commands.settings import add_preset, chosen_preset
from avatar.errors import BadInput, DoesNotFit
from avatar.geometry import Size
from avatar.media import prompt
from avatar.media.limits import InputLimits
from avatar.media.portrait import read_portrait
from avatar.planning.availability import way_out
from avatar.planning.inventory import Inventory, probe
from avatar.planning.layout import unsupported
from avatar.planning.placement import ALL_ON_GPU, Placement
from avatar.planning.plan import ALWAYS, DevicePlan, Plan, describe, gib
from avatar.planning.planner import plan
from avatar.preset import MOST_GIB, Preset, capability
from avatar.settings import MOST_GPUS
from avatar.sizes import video_size


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "plan", help="what a preset needs in memory", description=__doc__, allow_abbrev=False
    )
    machine = parser.add_argument_group(
        "an imagined machine", "instead of this one; empty cards, weights in place"
    )
    machine.add_argument("--gpus", type=int, metavar="N", help="number of GPUs")
    machine.add_argument("--vram", type=float, metavar="GIB", help="memory of each GPU")
    machine.add_argument("--ram", type=float, metavar="GIB", help="host memory (64)")
    machine.add_argument("--compute_capability", metavar="X.Y", help="of each GPU (8.9)")
    parser.add_argument(
        "--image", type=Path, metavar="FILE", help="a portrait, to be told which size its video will have"
    )
    parser.add_argument("--json", action="store_true", help="as JSON")
    add_preset(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the plan; the exit code says whether it fits."""
    inventory = _inventory(args)
    preset = chosen_preset(args, inventory)
    check_prompt(preset, inventory)
    video = None if args.image is None else size_of(args.image, preset)
    planned = plan(preset, inventory)
    remedy = "" if planned.fits else way_out(preset, inventory)
    not_yet = unsupported(preset)
    if args.json:
        told = {"imagined": inventory.imagined, "way_out": remedy, "unsupported": not_yet}
        told |= {"video": None if video is None else {"width": video.width, "height": video.height}}
        write_json({**planned.as_dict(), **told})
    else:
        if video is not None:
            words = f"{args.image.name} becomes a video of {video.width}×{video.height} pixels."
            console().print(words, markup=False)
        _print(planned, remedy)
        for line in not_yet:
            console().print(line, markup=False)
    return 0 if planned.fits else DoesNotFit.exit_code


def check_prompt(preset: Preset, inventory: Inventory) -> None:
    """Count the prompt, if the checkpoint is here. Raises: BadInput when it is too long."""
    tokenizer = inventory.checkpoint.tokenizer if preset.requires.weights == "live-avatar" else None
    prompt.check_prompt(preset.generation.prompt, InputLimits().max_prompt_tokens, tokenizer)


def size_of(portrait: Path, preset: Preset) -> Size:
    """The size of a portrait's video. Raises: BadInput."""
    height, width = read_portrait(portrait).shape[:2]
    return video_size(preset.engine, width, height, preset.generation.size)


def _inventory(args: argparse.Namespace) -> Inventory:
    """This machine, or the imagined one of the flags. Raises: BadInput when they make no machine."""
    wishes = {"compute_capability": args.compute_capability, "host_ram_gib": args.ram}
    wishes = {name: value for name, value in wishes.items() if value is not None}
    if args.gpus is None and args.vram is None:
        if wishes:
            raise BadInput(
                "--ram and --compute_capability describe an imagined machine.", "Give --gpus and --vram too."
            )
        return probe()
    if (
        args.gpus is None
        or args.vram is None
        or not 0 <= args.gpus <= MOST_GPUS
        or not 0 < args.vram <= MOST_GIB
    ):
        raise BadInput("An imagined machine needs --gpus and --vram.", "For example: --gpus 4 --vram 24.")
    if args.ram is not None and not 0 < args.ram <= MOST_GIB:
        raise BadInput(f"--ram is {args.ram:g}.", "Give the host's memory in GiB, for example 64.")
    if args.compute_capability is not None:
        try:
            capability(args.compute_capability)
        except ValueError as error:
            raise BadInput(
                f"--compute_capability is {args.compute_capability[:20]!r}.", 'Write it like "8.9".'
            ) from error
    return Inventory.imagine(args.gpus, args.vram, **wishes)


def _print(planned: Plan, remedy: str) -> None:
    out = console()
    title = f"{planned.preset}: {'estimated' if planned.is_estimate else 'planned'} memory"
    table = Table("device", "item", "GiB", "while", title=title)
    table.columns[2].justify = "right"
    for device in planned.devices:
        for item in sorted(device.items, key=lambda item: -item.num_bytes):
            stages = "always" if len(item.stages) == len(ALWAYS) else ", ".join(item.stages)
            table.add_row(device.label, describe(item.name), gib(item.num_bytes).split()[0], stages)
        table.add_row(
            device.label, f"[bold]peak, {device.peak_stage}[/]", f"[bold]{device.peak_bytes / 2**30:.1f}[/]"
        )
        table.add_section()
    out.print(table)
    for device in planned.devices:
        out.print(_verdict(device), markup=False)
    if planned.placement != ALL_ON_GPU:
        out.print(_waiting(planned.placement), markup=False)
    if not planned.fits:
        out.print(f"It does not fit. {remedy}", markup=False)


def _verdict(device: DevicePlan) -> str:
    free = "unknown" if device.available_bytes is None else gib(device.available_bytes)
    verdict = f"short of {gib(device.shortfall_bytes)}" if device.shortfall_bytes else "fits"
    return f"{device.label}: {gib(device.peak_bytes)} at the peak, {free} free: {verdict}"


def _waiting(placement: Placement) -> str:
    """What waits on the host, in words."""
    what = [f"{placement.layers_on_host} layers"] if placement.layers_on_host else []
    what += ["the rings"] if placement.rings_on_host else []
    what += ["the side models"] if placement.side_models_on_host else []
    return f"In host memory until they are needed: {', '.join(what)}."
