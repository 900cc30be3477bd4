"""Doctor's table: `python -m avatar.model.device_report` tries every fast path on every GPU; JSON."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from typing import Any

import torch

from avatar.model.device_checks import (
    TEXTS,
    compiles,
    forget,
    grows_segments,
    has_cudnn_attention,
    pins,
    reason_missing,
)
from avatar.model.quantize import FLOAT8_CAPABILITY, product_on


@dataclass(frozen=True)
class Check:
    """What came of one trial. ok: None where this device is not asked for it. reason: of a failure.

    text: what it costs to do without.
    """

    code: str
    ok: bool | None
    reason: str
    text: str


def check_device(device: torch.device) -> list[Check]:
    """Everything, tried on a CUDA device, as the engine would: doctor's table."""
    has_fp8 = torch.cuda.get_device_capability(device) >= FLOAT8_CAPABILITY
    found: dict[str, bool | None] = {
        "segments": grows_segments(device),
        "compile": compiles(device),
        "cudnn": has_cudnn_attention(device),
        "fp8": product_on(device) == "scaled" if has_fp8 else None,
        "pinned": pins(device),
    }
    return [Check(code, found[code], reason_missing(code), TEXTS[code]) for code in TEXTS]


def check_all() -> list[dict[str, Any]]:
    """Every CUDA device that this process sees."""
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
    """Print the tables."""
    sys.stdout.write(json.dumps(check_all()) + "\n")


if __name__ == "__main__":
    main()
