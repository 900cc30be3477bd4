"""Flags that change a preset's settings, shared by the commands that take a preset."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from avatar.memory.choice import choose
from avatar.memory.inventory import Inventory
from avatar.preset import Preset


def truth(text: str) -> bool:
    """ "True" or "False", in any case."""
    match text.lower():
        case "true" | "1" | "yes":
            return True
        case "false" | "0" | "no":
            return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")


def add_preset(parser: argparse.ArgumentParser) -> None:
    """--preset and every setting that may be laid over it."""
    parser.add_argument("--preset", default="auto", metavar="NAME", help="a preset, or a .toml file (auto)")
    group = parser.add_argument_group("settings", "laid over the preset's own")
    group.add_argument("--size", metavar="W*H", help="area of the picture, the portrait's shape is kept")
    group.add_argument("--infer_frames", type=int, metavar="N", help="frames of a clip, a multiple of 4")
    group.add_argument(
        "--num_clip", type=int, metavar="N", help="at most so many clips; 0: all of the speech"
    )
    group.add_argument("--sample_steps", type=int, metavar="N", help="denoising steps, 1 to 8")
    group.add_argument(
        "--shift", "--sample_shift", type=float, metavar="X", help="shift of the sampler's timesteps"
    )
    group.add_argument(
        "--sample_guide_scale",
        "--guide_scale",
        type=float,
        metavar="X",
        help="0 and nothing else: the model is distilled",
    )
    group.add_argument(
        "--seed", "--base_seed", type=int, metavar="N", help="same seed and settings, same video"
    )
    group.add_argument("--prompt", metavar="TEXT", help="what the picture shows and how the person speaks")
    on_or_off: dict[str, Any] = {"type": truth, "metavar": "True|False"}
    group.add_argument(
        "--enable_online_decode", nargs="?", const=True, **on_or_off, help="decode every block as it comes"
    )
    group.add_argument(
        "--offload_model", **on_or_off, help="keep layers in host memory until they are needed"
    )
    group.add_argument("--weight_dtype", metavar="TYPE", help="bf16, fp8 or fp32")
    group.add_argument("--ring_dtype", metavar="TYPE", help="bf16, fp8 or fp32")
    group.add_argument(
        "--attention_dtype",
        metavar="TYPE",
        help="bf16; or int8: faster on recent GPUs, with rings in 8 bits, at a small loss",
    )
    places = group.add_mutually_exclusive_group()
    where = "where the prompt is encoded: gpu, cpu, or sharded over all GPUs"
    places.add_argument("--text_encoder", metavar="PLACE", help=where)
    for flag, place in (("--t5_cpu", "cpu"), ("--t5_fsdp", "sharded")):
        same = f"the same as --text_encoder {place}"
        places.add_argument(flag, dest="text_encoder", action="store_const", const=place, help=same)
    add_layout(parser)
    add_reference(parser)


def add_layout(parser: argparse.ArgumentParser) -> None:
    """How the work is spread over GPUs."""
    group = parser.add_argument_group("several GPUs", "laid over the preset's own settings")
    group.add_argument("--num_gpus_dit", type=int, metavar="N", help="GPUs for the transformer")
    group.add_argument("--ulysses_size", type=int, metavar="N", help="GPUs that share each item by heads")
    group.add_argument(
        "--enable_vae_parallel",
        dest="decode_gpu",
        nargs="?",
        const=True,
        type=truth,
        metavar="True|False",
        help="one more GPU, for decoding alone",
    )
    kinds = group.add_mutually_exclusive_group()
    kinds.add_argument(
        "--parallel", dest="layout", metavar="LAYOUT", help="layers, timesteps, ulysses or fsdp"
    )
    kinds.add_argument(
        "--dit_fsdp", dest="layout", action="store_const", const="fsdp", help="the same as --parallel fsdp"
    )


def add_reference(parser: argparse.ArgumentParser) -> None:
    """Flags of the public code's commands: other spellings, and what is done here anyway."""
    group = parser.add_argument_group("as the public code spells it")
    group.add_argument(
        "--fp8", dest="weight_dtype", action="store_const", const="fp8", help="--weight_dtype fp8"
    )
    for flag, value in ONLY.items():
        group.add_argument(flag, choices=(value,), metavar=value, help="and nothing else")
    for flag in ALWAYS:
        group.add_argument(flag, action="store_true", help="always done")


ONLY = {
    "--task": "s2v-14B",
    "--sample_solver": "euler",
    "--training_config": "liveavatar/configs/s2v_causal_sft.yaml",
    "--lora_path_dmd": "Quark-Vision/Live-Avatar",
}
ALWAYS = ("--load_lora", "--convert_model_dtype")

FLAGS = (
    "size",
    "infer_frames",
    "num_clip",
    "sample_steps",
    "shift",
    "sample_guide_scale",
    "seed",
    "prompt",
    "enable_online_decode",
    "offload_model",
    "weight_dtype",
    "ring_dtype",
    "attention_dtype",
    "text_encoder",
    "num_gpus_dit",
    "ulysses_size",
    "decode_gpu",
    "layout",
)


def chosen_preset(args: argparse.Namespace, inventory: Inventory, also_given: tuple[str, ...] = ()) -> Preset:
    """The preset of --preset with the flags' settings, `auto` resolved for this machine.

    also_given: other flags that the user gave, which not every engine can honour.
    Raises: BadInput for an unknown preset or a setting that its engine cannot honour, DoesNotFit.
    """
    given = {name: getattr(args, name) for name in FLAGS if getattr(args, name) is not None}
    return choose(args.preset, given, inventory, also_given)


def add_long(parser: argparse.ArgumentParser) -> None:
    """What makes a long speech in parts."""
    group = parser.add_argument_group("long speech", "made in parts, which are kept if the run is ended")
    group.add_argument(
        "--checkpoint_every",
        type=int,
        metavar="N",
        help="keep a part every N clips (diffusion) or N seconds (preview)",
    )
    group.add_argument(
        "--independent",
        action="store_true",
        help="cut where the speech is silent, and begin every part from the portrait",
    )
    group.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="engines at once, each on GPUs of its own (1)"
    )
    group.add_argument("--keep_parts", action="store_true", help="leave the parts in OUTPUT.parts")


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ckpt_dir",
        type=Path,
        metavar="DIR",
        help="where the weights are ($AVATAR_WEIGHTS, ./ckpt, the hub's cache)",
    )
