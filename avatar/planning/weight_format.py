"""Which 8-bit format of the weights a card multiplies faster, by its compute capability and name.

fp8 needs fp8 cores, which cards have since compute capability 8.9. GeForce cards add its products up at half
of int8's rate: an RTX 4090 reaches 330 TFLOP/s in fp8 with sums in float32 and 661 TOP/s in int8, an RTX
5090 419 and 838. On cards for data centres and workstations both are alike. int8 runs on every card since
Ampere.
Source: NVIDIA's white papers on the Ada and RTX Blackwell architectures, datasheets of L40S and L4.
"""

from __future__ import annotations

from collections.abc import Sequence

from avatar.hardware.inventory import Gpu, probe
from avatar.preset import Preset, capability
from avatar.settings import WeightDtype

FLOAT8_CAPABILITY = (8, 9)
GEFORCE = "GeForce"  # in the names of these cards


def faster_format(gpus: Sequence[Gpu]) -> WeightDtype:
    """The 8-bit format for a model on these cards: fp8 where it is as fast as int8 on each of them."""
    return "fp8" if gpus and not any(map(_prefers_int8, gpus)) else "int8"


def settled(preset: Preset, gpus: Sequence[Gpu]) -> Preset:
    """The preset with a weight_dtype of "8bit" replaced by the format for these cards."""
    if preset.memory.weight_dtype != "8bit":
        return preset
    return preset.with_settings(weight_dtype=faster_format(gpus))


def settled_here(preset: Preset) -> Preset:
    """The same for the cards that this process may use."""
    return preset if preset.memory.weight_dtype != "8bit" else settled(preset, probe().gpus)


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
    """Unknown capabilities count as old ones, which have no fp8 cores."""
    return capability(gpu.compute_capability or "0.0") < FLOAT8_CAPABILITY or GEFORCE in (gpu.name or "")
