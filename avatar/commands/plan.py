"""`plan`: what a preset will hold in memory, on this machine or on an imagined one, before anything loads."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from avatar.checkpoints.locations import locate
from avatar.commands.output import console, write_json
from avatar.commands.setting_flags import add_checkpoint, add_preset, chosen_preset
from avatar.errors import BadInput, DoesNotFit
from avatar.events import Notice
from avatar.geometry import Size
from avatar.hardware.inventory import Inventory, probe
from avatar.media import prompt
from avatar.media.limits import InputLimits
from avatar.media.portrait import read_portrait, smaller_video
from avatar.media.speaker_choice import MOST_SPEAKERS
from avatar.planning.placement import ALL_ON_GPU, Placement
from avatar.planning.plan import ALWAYS, DevicePlan, Plan, describe, gib
from avatar.planning.verdict import Verdict, judge, what_to_try
from avatar.planning.weight_format import advice, lacking_float8
from avatar.preset import MOST_GIB, Preset, capability
from avatar.settings import EIGHT_BIT, MOST_GPUS
from avatar.sizes import video_size


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "plan", help="what a preset needs in memory", description=__doc__, allow_abbrev=False
    )
    machine = parser.add_argument_group(
        "an imagined machine", "instead of this one; empty cards, the weights that are here or the published"
    )
    machine.add_argument("--gpus", type=int, metavar="N", help="number of GPUs")
    machine.add_argument("--vram", type=float, metavar="GIB", help="memory of each GPU")
    machine.add_argument("--ram", type=float, metavar="GIB", help="host memory (64)")
    machine.add_argument("--compute_capability", metavar="X.Y", help="of each GPU (8.9)")
    parser.add_argument(
        "--image", type=Path, metavar="FILE", help="a portrait, to see which size its video will have"
    )
    parser.add_argument(
        "--num_speakers",
        type=int,
        default=1,
        choices=range(1, MOST_SPEAKERS + 1),
        metavar="N",
        help=f"faces with a voice of their own, up to {MOST_SPEAKERS} (1)",
    )
    parser.add_argument("--json", action="store_true", help="as JSON")
    add_preset(parser)
    add_checkpoint(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the plan and the verdict; the exit code is 0 if the preset runs on this machine."""
    inventory = _inventory(args)
    # auto looks at the checkpoint whatever it then takes
    named = ("ckpt_dir",) if args.ckpt_dir is not None and args.preset != "auto" else ()
    preset = chosen_preset(args, inventory, named, num_speakers=args.num_speakers)
    check_prompt(preset, inventory)
    video, smaller = (None, []) if args.image is None else size_of(args.image, preset)
    verdict = judge(preset, inventory, num_speakers=args.num_speakers)
    remedy = "" if verdict.ok else _remedy(verdict, inventory, args.num_speakers)
    if args.json:
        size = None if video is None else {"width": video.width, "height": video.height}
        advised, said = advice(verdict.preset, verdict.gpus), [notice.text for notice in smaller]
        figures = _as_dict(verdict, remedy, inventory)
        write_json({**figures, "advice": advised, "video": size, "notices": said})
        return 0 if verdict.ok else DoesNotFit.exit_code
    if video is not None:
        words = f"{args.image.name} becomes a video of {video.width}×{video.height} pixels."
        console().print(words, markup=False)
    for notice in smaller:
        console().print(f"{notice.level}: {notice.text}", markup=False)
    if verdict.plan is not None:
        _print(verdict.plan)
    for line in _by_the_cards(preset, verdict):
        console().print(line, markup=False)
    for line in verdict.missing:
        console().print(line, markup=False)
    console().print(_conclusion(args.preset, verdict, remedy, inventory), markup=False)
    return 0 if verdict.ok else DoesNotFit.exit_code


def _conclusion(name: str, verdict: Verdict, remedy: str, inventory: Inventory) -> str:
    """Whether it runs, and what to do if not. name: as the preset was asked for."""
    preset = verdict.preset
    if verdict.ok:
        where = "would run on such a machine" if inventory.imagined else "runs here"
        return f"Preset {preset.name} {where}."
    where = "It would not run on such a machine." if inventory.imagined else "It does not run here."
    imagining = ""
    if "num_gpus" in {shortfall.code for shortfall in verdict.shortfalls}:
        cards = f"--gpus {preset.num_gpus} --vram {preset.requires.vram_gib or 24:g}"
        imagining = f" What it would hold elsewhere: `python -m avatar plan --preset {name} {cards}`."
    return f"{where} {remedy}{imagining}"


def _by_the_cards(asked: Preset, verdict: Verdict) -> Iterator[str]:
    """The format of weights in 8 bits, whether another one would be faster, and 8-bit attention's absence."""
    format, gpus = verdict.preset.memory.weight_dtype, verdict.gpus
    if format in EIGHT_BIT and gpus:
        yield f"The transformer's weights are kept in {format}."
    if text := advice(verdict.preset, gpus):
        yield text
    if asked.memory.attention_dtype != verdict.preset.memory.attention_dtype:
        unable = ", ".join(map(str, lacking_float8(gpus)))
        yield f"Attention runs in bf16, over rings in fp8: without fp8 cores on {unable}, not in 8 bits."


def _remedy(verdict: Verdict, inventory: Inventory, num_speakers: int) -> str:
    """The remedy: a smaller choice if only memory is lacking, otherwise that of the first shortfall."""
    if {shortfall.code for shortfall in verdict.shortfalls} <= {"memory", "host_ram"}:
        return what_to_try(verdict.preset, inventory, num_speakers=num_speakers)
    return verdict.remedy


def _as_dict(verdict: Verdict, remedy: str, inventory: Inventory) -> dict[str, Any]:
    """Plain data for JSON; "fits" is the whole verdict, not only on memory."""
    preset, size = verdict.preset, verdict.size
    figures = {} if verdict.plan is None else verdict.plan.as_dict()
    return {
        **figures,
        "preset": preset.name,
        "engine": preset.engine,
        "width": size.width,
        "height": size.height,
        "infer_frames": preset.generation.infer_frames,
        "sample_steps": preset.generation.sample_steps,
        "fits": verdict.ok,
        "lacks": [
            {"code": shortfall.code, "text": shortfall.text, "remedy": shortfall.remedy}
            for shortfall in verdict.shortfalls
        ],
        "takes": [{"index": gpu.index, "name": gpu.name, "uuid": gpu.uuid} for gpu in verdict.gpus],
        "imagined": inventory.imagined,
        "way_out": remedy,
        "unsupported": [
            shortfall.text for shortfall in verdict.shortfalls if shortfall.code == "unsupported"
        ],
    }


def check_prompt(preset: Preset, inventory: Inventory) -> None:
    """Count the prompt's tokens, if the checkpoint is here. Raises: BadInput when there are too many."""
    tokenizer = inventory.checkpoint.tokenizer if preset.requires.weights == "live-avatar" else None
    made = preset.generation
    prompt.check_prompt(made.prompt, InputLimits().max_prompt_tokens, tokenizer, made.motion)


def size_of(portrait: Path, preset: Preset) -> tuple[Size, list[Notice]]:
    """The size of a portrait's video, and that it is smaller than the preset allows. Raises: BadInput."""
    height, width = read_portrait(portrait).shape[:2]
    size = video_size(preset.engine, width, height, preset.generation.size)
    return size, smaller_video(width, height, preset, portrait.name)


def _inventory(args: argparse.Namespace) -> Inventory:
    """This machine, or the imagined one of the flags. Raises: BadInput when the flags are incomplete."""
    imagined = {"compute_capability": args.compute_capability, "host_ram_gib": args.ram}
    imagined = {name: value for name, value in imagined.items() if value is not None}
    if args.gpus is None and args.vram is None:
        if imagined:
            raise BadInput(
                "--ram and --compute_capability describe an imagined machine.", "Give --gpus and --vram too."
            )
        return probe(args.ckpt_dir)
    if (
        args.gpus is None
        or args.vram is None
        or not 0 <= args.gpus <= MOST_GPUS
        or not 0 < args.vram <= MOST_GIB
    ):
        raise BadInput("An imagined machine needs --gpus and --vram.", "For example: --gpus 4 --vram 24.")
    if args.compute_capability is not None and not args.gpus:
        raise BadInput("--compute_capability is of GPUs, and --gpus is 0.", "Leave one of them out.")
    if args.ram is not None and not 0 < args.ram <= MOST_GIB:
        raise BadInput(f"--ram is {args.ram:g}.", "Give the host's memory in GiB, for example 64.")
    if args.compute_capability is not None:
        try:
            capability(args.compute_capability)
        except ValueError as error:
            raise BadInput(
                f"--compute_capability is {args.compute_capability[:20]!r}.", 'Write it like "8.9".'
            ) from error
    machine, here = Inventory.imagine(args.gpus, args.vram, **imagined), locate(args.ckpt_dir)
    return replace(machine, checkpoint=here) if here.complete or args.ckpt_dir is not None else machine


def _print(planned: Plan) -> None:
    out = console()
    title = f"{planned.preset}: {'estimated' if planned.is_estimate else 'planned'} memory"
    table = Table("device", "item", "GiB", "while", title=escape(title))
    table.columns[2].justify = "right"
    for device in planned.devices:
        label = escape(device.label)
        for item in sorted((item for item in device.items if item.num_bytes), key=lambda i: -i.num_bytes):
            stages = "always" if len(item.stages) == len(ALWAYS) else ", ".join(item.stages)
            table.add_row(label, describe(item.name), gib(item.num_bytes).split()[0], stages)
        table.add_row(
            label, f"[bold]peak, {device.peak_stage}[/]", f"[bold]{device.peak_bytes / 2**30:.1f}[/]"
        )
        table.add_section()
    out.print(table)
    for device in planned.devices:
        out.print(_verdict(device), markup=False)
    if planned.placement != ALL_ON_GPU:
        out.print(_waiting(planned.placement), markup=False)


def _verdict(device: DevicePlan) -> str:
    free = "unknown" if device.available_bytes is None else gib(device.available_bytes)
    verdict = f"short of {gib(device.shortfall_bytes)}" if device.shortfall_bytes else "fits"
    return f"{device.label}: {gib(device.peak_bytes)} at the peak, {free} free: {verdict}"


def _waiting(placement: Placement) -> str:
    """The offloaded parts, in words."""
    kept = " as GGUF blocks" if placement.layers_in_blocks else ""
    what = [f"{placement.layers_on_host} layers{kept}"] if placement.layers_on_host else []
    what += ["the rings"] if placement.rings_on_host else []
    what += ["the side models"] if placement.side_models_on_host else []
    listens = " The speech encoder works on the CPU." if placement.speech_on_cpu else ""
    return f"In host memory until they are needed: {', '.join(what)}.{listens}"
