"""Machines to imagine, and reading what a command printed."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from avatar.hardware.inventory import Inventory, probe

NO_GPU = replace(probe(), gpus=(), no_gpu_reason="No NVIDIA driver.")
H200 = Inventory.imagine(1, 139)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """What was printed as JSON, line by line."""
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]
