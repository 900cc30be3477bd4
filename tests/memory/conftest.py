"""A fake NVIDIA driver: a C library that pynvml loads by its real name, in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent

RunWithDriver = Callable[..., Any]


@pytest.fixture(scope="session")
def fake_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a fresh libnvidia-ml.so.1."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    assert compiler, "The fake NVIDIA driver must be compiled: install gcc (apt-get install gcc)."
    folder = tmp_path_factory.mktemp("driver")
    library = folder / "libnvidia-ml.so.1"
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", library, HERE / "fake_nvml.c"]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder


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
