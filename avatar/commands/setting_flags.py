"""Flags that change a preset's settings, shared by the commands that take a preset."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from avatar.errors import BadInput
from avatar.geometry import FPS
from avatar.hardware.inventory import Inventory
from avatar.media.framing import parse_picture
from avatar.planning.preset_choice import choose
from avatar.preset import Preset
from avatar.settings import PICTURE, SETTINGS, SHOWN, Declared, Picture


def truth(text: str) -> bool:
    """ "True" or "False", in any case."""
    match text.lower():
        case "true" | "1" | "yes":
            return True
        case "false" | "0" | "no":
            return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")


def add_preset(parser: argparse.ArgumentParser) -> None:
    """--preset and a flag for every setting of the table."""
    parser.add_argument("--preset", default="auto", metavar="NAME", help="a preset, or a .toml file (auto)")
    groups: dict[str, argparse._ArgumentGroup] = {}
    for one in SETTINGS.values():
        heading = one.setting.group
        if heading not in groups:
            groups[heading] = parser.add_argument_group(heading, "laid over the preset's own")
        add_declared(groups[heading], one)
    add_reference(parser)


def add_picture(parser: argparse.ArgumentParser) -> None:
    """Flags for which face speaks, and for which part of the portrait is shown."""
    group = parser.add_argument_group(SHOWN)
    for one in PICTURE.values():
        add_declared(group, one)


def chosen_picture(args: argparse.Namespace) -> Picture:
    """Who speaks and what is shown, by the flags. Raises: BadInput."""
    return parse_picture(files=True, **{name: getattr(args, name) for name in PICTURE})


def add_declared(group: argparse._ArgumentGroup, one: Declared) -> None:
    """Add a setting's flag, its other spellings, and the flags that stand for one of its values."""
    setting = one.setting
    flags = (setting.flag or f"--{one.name}", *setting.spellings)
    options: dict[str, Any] = {"dest": one.name, "help": setting.help}
    if one.kind is bool:
        options |= {"nargs": "?", "const": True, "type": truth, "metavar": "True|False"}
    elif one.choices:
        options |= {"metavar": one.name.upper(), "help": f"{setting.help}: {', '.join(one.choices)}"}
    else:
        options |= {"type": one.kind, "metavar": setting.metavar or ("N" if one.kind is int else "X")}
    if setting.joined_by:
        options |= {"action": _Joined, "joined_by": setting.joined_by}
    if not setting.constants:
        group.add_argument(*flags, **options)
        return
    either = group.add_mutually_exclusive_group()
    either.add_argument(*flags, **options)
    for flag, value in setting.constants.items():
        same = f"the same as {flags[0]} {value}"
        either.add_argument(flag, dest=one.name, action="store_const", const=value, help=same)


class _Joined(argparse.Action):
    """Joins the values of a flag that is given several times into one text."""

    def __init__(self, *args: Any, joined_by: str, **options: Any) -> None:
        super().__init__(*args, **options)
        self._joined_by = joined_by

    def __call__(self, parser: Any, namespace: argparse.Namespace, value: Any, flag: Any = None) -> None:
        """Called by argparse for each occurrence."""
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, value if before is None else f"{before}{self._joined_by}{value}")


def add_reference(parser: argparse.ArgumentParser) -> None:
    """Flags of the public code's commands: other spellings, and options that always hold here."""
    group = parser.add_argument_group("as the public code spells it")
    for flag, value in ONLY.items():
        group.add_argument(flag, choices=(value,), metavar=value, help="and nothing else")
    for flags, number, why in ONE_NUMBER:
        group.add_argument(
            *flags, type=_only(flags[0], number, why), metavar=f"{number:g}", help=f"and nothing else: {why}"
        )
    for flag in ALWAYS:
        group.add_argument(flag, action="store_true", help="always done")


ONLY = {
    "--task": "s2v-14B",
    "--sample_solver": "euler",
    "--training_config": "liveavatar/configs/s2v_causal_sft.yaml",
    "--lora_path_dmd": "Quark-Vision/Live-Avatar",
}
ALWAYS = ("--load_lora", "--convert_model_dtype")

ONE_NUMBER = (
    (
        ("--sample_guide_scale", "--guide_scale"),
        0,
        "the model is distilled, it was trained to run without guidance",
    ),
    (("--fps",), FPS, "the model knows no other rate"),
)


def _only(flag: str, number: int, why: str) -> Callable[[str], float]:
    """A flag's type that takes one number. Raises: BadInput for any other, with the reason."""

    def parse(text: str) -> float:
        if float(text) != number:
            raise BadInput(f"{flag[2:]} is {text}.", f"It must be {number}: {why}.")
        return number

    return parse


def given_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that the flags name, with their values."""
    return {name: value for name in SETTINGS if (value := getattr(args, name)) is not None}


def chosen_preset(
    args: argparse.Namespace,
    inventory: Inventory,
    also_given: tuple[str, ...] = (),
    num_speakers: int = 1,
) -> Preset:
    """The preset of --preset with the flags' settings, `auto` resolved for this machine.

    also_given: other flags that the user gave, which not every engine can honour. num_speakers: see judge.
    Raises: BadInput for an unknown preset or a setting that its engine cannot honour, DoesNotFit.
    """
    return choose(args.preset, given_settings(args), inventory, also_given, num_speakers)


def add_long(parser: argparse.ArgumentParser) -> None:
    """Flags for making the video of a long speech in parts."""
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
