"""What of a preset its cards decide, by compute capability and name: the 8-bit format of weights that they
multiply faster, and whether they can attend in 8 bits.

fp8 needs fp8 cores, which cards have since compute capability 8.9. GeForce cards add its products up at half
of int8's rate: an RTX 4090 reaches 330 TFLOP/s in fp8 with sums in float32 and 661 TOP/s in int8, an RTX
5090 419 and 838. On cards for data centres and workstations both are alike. int8 runs on every card since
Ampere. Attention in 8 bits is int8 keys by fp8 values: it needs the fp8 cores.
Source: NVIDIA's white papers on the Ada and RTX Blackwell architectures, datasheets of L40S and L4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from avatar.hardware.inventory import Gpu, probe
from avatar.preset import Preset, capability
from avatar.settings import WeightDtype

FLOAT8_CAPABILITY = (8, 9)
GEFORCE = "GeForce"  # in the names of these cards


def faster_format(gpus: Sequence[Gpu]) -> WeightDtype:
    """The 8-bit format for a model on these cards: fp8 where it is as fast as int8 on each of them."""
    return "fp8" if gpus and not any(map(_prefers_int8, gpus)) else "int8"


def settled(preset: Preset, gpus: Sequence[Gpu]) -> Preset:
    """The preset with what these cards decide.

    A weight_dtype of "8bit" becomes the format for them. Where one of them cannot attend in 8 bits, attention
    runs in bf16 over rings in fp8.
    """
    changes: dict[str, Any] = {}
    if preset.memory.weight_dtype == "8bit":
        changes["weight_dtype"] = faster_format(gpus)
    if preset.memory.attention_dtype == "int8" and lacking_float8(gpus):
        changes |= {"attention_dtype": "bf16", "ring_dtype": "fp8"}
    return preset.with_settings(**changes) if changes else preset


def settled_here(preset: Preset) -> Preset:
    """The same for the cards that this process may use."""
    memory = preset.memory
    if memory.weight_dtype != "8bit" and memory.attention_dtype != "int8":
        return preset
    return settled(preset, probe().gpus)


def lacking_float8(gpus: Sequence[Gpu]) -> list[Gpu]:
    """The cards without fp8 cores; unknown capabilities count as old ones, which have none."""
    return [gpu for gpu in gpus if capability(gpu.compute_capability or "0.0") < FLOAT8_CAPABILITY]


def advice(preset: Preset, gpus: Sequence[Gpu]) -> str:
    """What to say of a preset that asks for fp8 where int8 is faster; "" otherwise."""
    slower = [str(gpu) for gpu in gpus if _prefers_int8(gpu)]
    if preset.memory.weight_dtype != "fp8" or not slower:
        return ""
    return (
        f"int8 weights are faster than fp8 on {', '.join(slower)}, and as small: "
        "set weight_dtype to int8, or to 8bit, which chooses by the card."
    )


def advice_here(preset: Preset) -> str:
    """The same for the cards that this process may use."""
    return advice(preset, probe().gpus) if preset.memory.weight_dtype == "fp8" else ""


def _prefers_int8(gpu: Gpu) -> bool:
    return bool(lacking_float8([gpu])) or GEFORCE in (gpu.name or "")
