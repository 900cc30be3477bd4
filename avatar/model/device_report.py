"""`python -m avatar.model.device_report` tries every fast path on every GPU and prints JSON for `doctor`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from typing import Any

import torch

from avatar.checkpoints.transformer_config import ModelConfig
from avatar.hardware.fast_paths import FAST_PATHS
from avatar.model.device_checks import (
    compiles,
    forget,
    grows_segments,
    has_cudnn_attention,
    pins,
    reason_missing,
)
from avatar.model.kernels.selection import eight_bit_on, fused_on
from avatar.model.products_8bit import INT8_CAPABILITY, product_on
from avatar.model.quantize import FLOAT8, FLOAT8_CAPABILITY, INT8


@dataclass(frozen=True)
class Check:
    """The result of trying one fast path. ok: None where it does not apply to this device.

    reason: why it failed. text: what is missing, and what that costs.
    """

    code: str
    ok: bool | None
    reason: str
    text: str


def check_device(device: torch.device) -> list[Check]:
    """Try every fast path on a CUDA device, as the engine would."""
    capability, config = torch.cuda.get_device_capability(device), ModelConfig()
    has_float8 = capability >= FLOAT8_CAPABILITY
    found: dict[str, bool | None] = {
        "segments": grows_segments(device),
        "compile": compiles(device),
        "cudnn": has_cudnn_attention(device),
        "attention": (eight_bit_on(device, config.num_heads, config.head_dim) is not None)
        if has_float8
        else None,
        "kernels": fused_on(device),
        "fp8": product_on(device, FLOAT8) == "scaled" if has_float8 else None,
        "int8": product_on(device, INT8) == "kernel" if capability >= INT8_CAPABILITY else None,
        "pinned": pins(device),
    }
    return [Check(code, found[code], reason_missing(code), text) for code, text in FAST_PATHS.items()]


def check_all() -> list[dict[str, Any]]:
    """Check every CUDA device visible to this process."""
    if not torch.cuda.is_available():
        return []
    devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    tables = []
    for device in devices:
        forget()
        checks = [asdict(check) for check in check_device(device)]
        tables.append({"name": torch.cuda.get_device_name(device), "checks": checks})
    return tables


def main() -> None:
    """Print the tables as JSON."""
    sys.stdout.write(json.dumps(check_all()) + "\n")


if __name__ == "__main__":
    main()
