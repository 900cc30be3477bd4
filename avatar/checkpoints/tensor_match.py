"""Describe how a file's tensors differ from a model's, with equal layers folded into one name."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

from avatar.checkpoints.tensor_headers import Shape

_LAYER_INDEX = re.compile(r"(?<=\.)\d+(?=\.)")


def mismatches(expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> str:
    """Every missing, unexpected and mis-shaped tensor, in words; "" if there are none."""
    missing = expected.keys() - found.keys()
    unexpected = found.keys() - expected.keys()
    reshaped = {
        f"{name} is {_by(found[name])} instead of {_by(expected[name])}"
        for name in expected.keys() & found.keys()
        if tuple(expected[name]) != tuple(found[name])
    }
    parts = [
        f"{label}: {', '.join(fold_layers(names))}."
        for label, names in (("missing", missing), ("unexpected", unexpected), ("wrong shape", reshaped))
        if names
    ]
    return " ".join(parts)


def fold_layers(names: Iterable[str]) -> list[str]:
    """Names sorted, those that differ only in their first index merged: blocks.{0..39}.ffn.0.bias."""
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    plain = []
    for name in names:
        match = _LAYER_INDEX.search(name)
        if match:
            groups[name[: match.start()], name[match.end() :]].append(int(match[0]))
        else:
            plain.append(name)
    for (head, tail), layers in groups.items():
        runs = _runs(sorted(layers))
        plain.append(f"{head}{runs if len(layers) == 1 else '{' + runs + '}'}{tail}")
    return sorted(plain)


def _runs(numbers: list[int]) -> str:
    """[0, 1, 2, 5] as "0..2,5"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}..{last}" for first, last in runs)


def _by(shape: Shape) -> str:
    return "×".join(map(str, shape)) or "a single number"
