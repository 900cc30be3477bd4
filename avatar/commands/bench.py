"""`bench`: what a machine does with a preset, before or after downloading the weights."""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from avatar.bench.untimed import refuse_untimed
from avatar.checkpoints.locations import Checkpoint
from avatar.checkpoints.model_sizes import ModelSizes
from avatar.checkpoints.prompt_tokens import MAX_TOKENS
from avatar.checkpoints.transformer_config import ModelConfig
from avatar.commands.output import write_json
from avatar.commands.setting_flags import add_checkpoint, add_preset, chosen_preset, given_settings
from avatar.errors import AvatarError, BadInput, DoesNotFit
from avatar.geometry import BLOCK_FRAMES, FPS
from avatar.hardware.inventory import Inventory, probe
from avatar.media import atomic
from avatar.media.side_files import MARK, check_free
from avatar.paths import is_dir
from avatar.planning.estimates import CUDA_CONTEXT_BYTES
from avatar.planning.layout import Layout
from avatar.planning.plan import GIB
from avatar.planning.planner import plan
from avatar.planning.verdict import Verdict, judge, require
from avatar.preset import Preset

BLOCKS = 32  # a pipeline of four stages is in a steady state for a dozen of them


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "bench", help="time a preset on this machine", description=__doc__, allow_abbrev=False
    )
    parser.add_argument(
        "--random_weights", action="store_true", help="make weights on the device: no checkpoint needed"
    )
    parser.add_argument(
        "--blocks", type=int, default=BLOCKS, metavar="N", help=f"blocks of 12 frames to generate ({BLOCKS})"
    )
    parser.add_argument(
        "--vram",
        type=float,
        metavar="GIB",
        help="take no more of each GPU's memory than this, to see what a smaller card would do",
    )
    parser.add_argument(
        "--layers",
        type=int,
        metavar="N",
        help="with random weights on several GPUs: the first N layers alone, a part of a longer pipeline",
    )
    parser.add_argument(
        "--prompt_tokens",
        type=int,
        metavar="N",
        help="with random weights: how long the prompt is that is made up (the longest of the short ones)",
    )
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write the figures there as well")
    add_checkpoint(parser)
    add_preset(parser)
    parser.set_defaults(run=run, json=True)


def run(args: argparse.Namespace) -> int:
    """Print the figures as JSON."""
    if args.random_weights and args.ckpt_dir:
        raise BadInput("With --random_weights no checkpoint is read.", "Leave out one of the two.")
    refuse_untimed(given_settings(args), args.random_weights)
    if args.prompt_tokens is not None:
        if not args.random_weights:
            raise BadInput("--prompt_tokens makes a prompt up.", "Take it with --random_weights.")
        if not 1 <= args.prompt_tokens <= MAX_TOKENS:
            raise BadInput(f"--prompt_tokens is {args.prompt_tokens}.", f"Take 1 to {MAX_TOKENS}.")
    if args.output:
        if not is_dir(args.output.absolute().parent):
            raise BadInput(f"There is no folder for {args.output.name}.", "Make it, or choose another one.")
        check_free(args.output)
    inventory = probe(args.ckpt_dir)
    if args.random_weights:
        inventory = replace(inventory, checkpoint=Checkpoint(complete=True))
    if args.vram is not None:
        inventory = _cut(inventory, args.vram)
    preset = chosen_preset(args, inventory)
    if preset.engine != "diffusion":
        raise BadInput(
            f"Preset {preset.name!r} has no model to time.", "Choose one of the diffusion engine's."
        )
    conditions = {**MARK, "random_weights": args.random_weights, "vram_gib": args.vram}
    if Layout.of(preset).world_size > 1:
        figures = {**conditions, **_figures_of_ranks(args, preset, inventory)}
    else:
        if args.layers is not None:
            raise BadInput(
                "--layers times a part of a pipeline.", "Take it with several GPUs, or leave it out."
            )
        verdict = require(preset, inventory)
        _show_alone(verdict)
        figures = {**conditions, **_figures(args, verdict.preset)}
    write_json(figures)
    if args.output:
        try:
            atomic.write(args.output, (json.dumps(figures, indent=1) + "\n").encode())
        except OSError as error:
            raise AvatarError(
                f"{args.output.name} cannot be written ({error.strerror}).", "The figures are printed above."
            ) from error
    return 0


def _cut(inventory: Inventory, vram_gib: float) -> Inventory:
    """The machine with at most vram_gib per GPU. Raises: BadInput for an invalid size."""
    if not 0 < vram_gib < math.inf:
        raise BadInput(f"--vram is {vram_gib:g}.", "Give the card's memory in GiB, for example 24.")
    limit = round(vram_gib * GIB)

    def least(num_bytes: int | None) -> int | None:
        return None if num_bytes is None else min(num_bytes, limit)

    gpus = (
        replace(gpu, total_bytes=least(gpu.total_bytes), free_bytes=least(gpu.free_bytes))
        for gpu in inventory.gpus
    )
    return replace(inventory, gpus=tuple(gpus))


def _figures_of_ranks(args: argparse.Namespace, preset: Preset, inventory: Inventory) -> dict[str, Any]:
    """The figures of a preset on several GPUs. Raises: BadInput, DoesNotFit."""
    from avatar.bench.rank_options import BenchOptions, first_layers
    from avatar.bench.ranks import bench_ranks

    if args.layers is not None and not args.random_weights:
        raise BadInput("--layers makes a model of its own.", "Take it with --random_weights.")
    sizes = ModelSizes.of(inventory.checkpoint)
    whole = config = _toy_config() if preset.requires.weights == "tiny" else sizes.config
    if args.layers is None:
        require(preset, inventory)
    else:
        config = first_layers(whole, args.layers)
        sizes = ModelSizes.published(config)
        _require_all_but_memory(preset, inventory)
    Layout.of(preset).for_model(config)
    if args.random_weights:
        preset = preset.with_settings(text_encoder="cpu")  # there is no text encoder
    verdict = judge(preset, inventory)
    _show_alone(verdict)
    preset, inventory = verdict.preset, replace(inventory, gpus=verdict.gpus)
    planned = plan(preset, inventory, speech_s=args.blocks * BLOCK_FRAMES / FPS, sizes=sizes)
    if not planned.fits:
        raise DoesNotFit(planned.shortfall, "Take fewer layers, or more memory.")
    terms = BenchOptions(
        checkpoint=None if args.ckpt_dir is None else str(args.ckpt_dir.absolute()),
        random=args.random_weights,
        num_layers=args.layers,
        vram_bytes=None if args.vram is None else round(args.vram * GIB),
        prompt_tokens=args.prompt_tokens,
    )
    layers = {"made": config.num_layers, "of": whole.num_layers}
    return {"layers": layers, **bench_ranks(preset, terms, planned, num_blocks=args.blocks)}


def _toy_config() -> ModelConfig:
    """The self-test's config."""
    from avatar.model.weights.tiny import CONFIG

    return CONFIG


def _require_all_but_memory(preset: Preset, inventory: Inventory) -> None:
    """Check all requirements of a preset except memory for the whole model. Raises: as require."""
    shortfalls = {shortfall.code for shortfall in judge(preset, inventory).shortfalls}
    if shortfalls - {"memory", "host_ram"}:
        require(preset, inventory)


def _show_alone(verdict: Verdict) -> None:
    """Show PyTorch, which is not imported yet, only the verdict's cards."""
    if verdict.uuids is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(verdict.uuids)


def _figures(args: argparse.Namespace, preset: Preset) -> dict[str, Any]:
    from avatar.bench.measure import take_no_more
    from avatar.bench.random_parts import random_parts
    from avatar.bench.run import bench
    from avatar.pipeline.checkpoint_choice import find_files
    from avatar.pipeline.components import Components
    from avatar.pipeline.device import best_device
    from avatar.pipeline.device_budget import plan_here

    device = best_device()
    if args.vram is not None:
        take_no_more(device, round(args.vram * GIB) - CUDA_CONTEXT_BYTES)
    sizes = ModelSizes.published() if args.random_weights else None
    placement = plan_here(preset, device, weights=args.ckpt_dir, sizes=sizes).placement
    if args.random_weights:
        return bench(preset, random_parts(preset, placement, args.prompt_tokens), num_blocks=args.blocks)
    with tempfile.TemporaryDirectory(prefix="avatar-bench-") as work:
        files = find_files(preset, args.ckpt_dir, Path(work))
        parts = Components.load(preset.memory, files, placement=placement)
        return bench(preset, parts, num_blocks=args.blocks, weights=args.ckpt_dir)
