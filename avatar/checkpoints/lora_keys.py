"""Which key of a LoRA file changes which tensor of the base model, for the files of all common trainers.

PEFT, DiffSynth, kohya's scripts, ComfyUI and diffusers name the same things in different ways.
Source: ComfyUI comfy/lora.py and comfy/weight_adapter/lora.py, diffusers
loaders/lora_conversion_utils.py (names of Wan's layers), kohya-ss/musubi-tuner (lora_unet_).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from avatar.checkpoints.tensor_headers import Shape

PREFIXES = (
    "base_model.model.",
    "pipe.dit.",
    "model.diffusion_model.",
    "diffusion_model.",
    "transformer.",
    "model.",
)
FLAT_PREFIX = "lora_unet_"  # kohya's; the name after it has underscores instead of dots
_HALF = re.compile(
    r"(?P<module>.+?)[._]lora(?:_(?P<side>A|B|down|up)|\.(?P<dotted>down|up))(?:\.default)?(?:\.weight)?"
)
_SIDES = {"A": "A", "down": "A", "B": "B", "up": "B"}
_OTHERS = {".alpha": "alpha", ".diff": "difference", ".diff_b": "difference of the bias"}
_WRAPPED = re.compile(r"\.(?:base_layer|modules_to_save\.default|original_module)(?=\.)")
DIFFUSERS_NAMES = (
    (".attn1.", ".self_attn."),
    (".attn2.", ".cross_attn."),
    (".to_q", ".q"),
    (".to_k", ".k"),
    (".to_v", ".v"),
    (".to_out.0", ".o"),
    (".ffn.net.0.proj", ".ffn.0"),
    (".ffn.net.2", ".ffn.2"),
)


@dataclass(frozen=True)
class LoraKey:
    """A parsed key. tensor: the base model's. part: A, B, alpha, difference, or "" for the whole tensor."""

    tensor: str
    part: str

    def __str__(self) -> str:
        words = f"lora_{self.part}" if self.part in ("A", "B") else self.part
        return f"{self.tensor} ({words})" if words else self.tensor


def read_keys(keys: Iterable[str], base: Mapping[str, Shape]) -> dict[str, LoraKey]:
    """Every key of a file, parsed; a tensor that the base does not have keeps its name."""
    flat = {name.removesuffix(".weight").replace(".", "_"): name.removesuffix(".weight") for name in base}
    return {key: _read_key(key, base, flat) for key in keys}


def _read_key(key: str, base: Mapping[str, Shape], flat: Mapping[str, str]) -> LoraKey:
    half = _HALF.fullmatch(key)
    if half:
        return LoraKey(
            f"{_module(half['module'], base, flat)}.weight", _SIDES[half["side"] or half["dotted"]]
        )
    for suffix, part in _OTHERS.items():
        if key.endswith(suffix):
            leaf = "bias" if suffix == ".diff_b" else "weight"
            tensor = f"{_module(key.removesuffix(suffix), base, flat)}.{leaf}"
            return LoraKey(tensor, part.partition(" ")[0])
    name = _WRAPPED.sub("", _without_prefix(key))
    return LoraKey(name, "")


def _module(name: str, base: Mapping[str, Shape], flat: Mapping[str, str]) -> str:
    """A module's name in the base model; if it is not there, the file's name without its prefix."""
    if name.startswith(FLAT_PREFIX):
        return flat.get(name.removeprefix(FLAT_PREFIX), name)
    plain = _without_prefix(name)
    if f"{plain}.weight" in base:
        return plain
    renamed = plain
    for theirs, ours in DIFFUSERS_NAMES:
        renamed = renamed.replace(theirs, ours) if theirs in f"{renamed}." else renamed
    return renamed if f"{renamed}.weight" in base else plain


def _without_prefix(name: str) -> str:
    while prefix := next((prefix for prefix in PREFIXES if name.startswith(prefix)), ""):
        name = name.removeprefix(prefix)
    return name


@dataclass(frozen=True)
class Change:
    """How a LoRA file changes one tensor: the file's key for each part, "" for parts that it lacks."""

    down: str = ""
    up: str = ""
    alpha: str = ""
    difference: str = ""
    whole: str = ""

    @property
    def tensors(self) -> tuple[str, ...]:
        """The file's keys for all parts but alpha, which is a number."""
        return tuple(key for key in (self.down, self.up, self.difference, self.whole) if key)


_FIELDS = {"A": "down", "B": "up", "alpha": "alpha", "difference": "difference", "": "whole"}
_UNSUPPORTED = {
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "dora_scale": "DoRA",
    "lora_mid": "LoCon",
    "lora_magnitude": "DoRA",
}


def read_changes(keys: Iterable[str], base: Mapping[str, Shape]) -> tuple[dict[str, Change], str]:
    """A file's changes to the base's tensors, by tensor name; and what is wrong with its keys, "" if nothing.

    An unknown key is not reported here; its tensor is simply not among the base's.
    """
    keys = list(keys)
    for mark, kind in _UNSUPPORTED.items():
        if any(mark in key for key in keys):
            return {}, f"it is a {kind}, which is not merged here."
    found: dict[str, dict[str, str]] = {}
    for key, named in read_keys(keys, base).items():
        holder, part = found.setdefault(named.tensor, {}), _FIELDS[named.part]
        if part in holder:
            return {}, f"{holder[part]} and {key} are the same tensor."
        holder[part] = key
    return {tensor: Change(**parts) for tensor, parts in found.items()}, ""


def shapes_of(
    changes: Mapping[str, Change], shapes: Mapping[str, Shape], base: Mapping[str, Shape]
) -> tuple[dict[str, Shape], dict[str, Shape]]:
    """The expected and the actual shapes for these changes, by str(LoraKey).

    The two halves of a pair are matrices for every kind of layer; both must exist, with the same rank.
    """
    expected: dict[str, Shape] = {}
    found: dict[str, Shape] = {}
    for tensor, change in changes.items():
        shape = base.get(tensor)
        halves = {"A": change.down, "B": change.up}
        sides = {side: _matrix(shapes[key]) for side, key in halves.items() if key}
        found |= {str(LoraKey(tensor, side)): sides[side] for side in sides}
        rank = sides["A"][0] if sides.get("A") else sides["B"][-1] if sides.get("B") else 0
        for part, key in (("difference", change.difference), ("", change.whole)):
            if key:
                found[str(LoraKey(tensor, part))] = shapes[key]
        if change.alpha and not sides:
            found[str(LoraKey(tensor, "alpha"))] = shapes[change.alpha]
        if shape is None:
            continue
        if sides:
            rows, columns = _matrix(shape)
            expected[str(LoraKey(tensor, "A"))] = (rank, columns)
            expected[str(LoraKey(tensor, "B"))] = (rows, rank)
        expected |= {
            str(LoraKey(tensor, part)): shape
            for part, key in (("difference", change.difference), ("", change.whole))
            if key
        }
    return expected, found


def _matrix(shape: Shape) -> Shape:
    """A weight's shape as a matrix; a convolution's kernel is flattened."""
    return (shape[0], math.prod(shape[1:])) if len(shape) > 2 else shape
