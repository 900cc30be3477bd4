"""Python code in a process that finds the fake NVIDIA driver."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

RunWithDriver = Callable[..., Any]


@pytest.fixture
def with_driver(fake_driver: Path) -> RunWithDriver:
    """Run Python code in a new process that finds the fake driver; returns what it leaves in `result`."""

    def run(code: str, gpus: list[int], errors: str = "", processes: str = "", **more: str) -> Any:
        env = {name: value for name, value in os.environ.items() if not name.startswith("CUDA_VISIBLE")}
        env |= {
            "LD_LIBRARY_PATH": str(fake_driver),
            "PYTHONPATH": str(ROOT),
            "FAKE_NVML_GPUS": ",".join(map(str, gpus)),
            "FAKE_NVML_ERRORS": errors,
            "FAKE_NVML_PROCESSES": processes,
            **more,
        }
        script = f"import json, os, sys\n{code}\njson.dump(result, sys.stdout)"
        done = subprocess.run(
            [sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run
