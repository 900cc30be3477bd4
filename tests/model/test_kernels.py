"""Our own kernels against their slow twins, on the CPU by Triton's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from avatar.model.kernels import selection
from avatar.model.kernels.selection import EightBitKernels, eight_bit_on, fused_on

ROOT = Path(__file__).parents[2]
FALLS_DIFFERENTLY = {  # values that differ by 1e-7 may round to different steps
    "attention": 3e-3,
    "attention_by_pointers": 3e-3,
    "normed_int8": 1e-3,
    "gelu_int8": 1e-3,
}


@pytest.fixture(scope="module")
def differences() -> dict[str, float]:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "tests.model.interpreted"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "kernel",
    [
        "attention", "attention_by_pointers", "rotated", "queries", "keys", "values", "added", "normed",
        "normed_float8", "gelu_float8", "normed_int8", "gelu_int8", "short", "timed",
        "product", "product_odd", "product_many_rows", "product_one_row",
    ],
)  # fmt: skip
def test_a_kernel_equals_its_twin(kernel, differences):
    assert differences[kernel] < FALLS_DIFFERENTLY.get(kernel, 1e-6)


def test_on_a_cpu_the_twins_themselves_run():
    assert eight_bit_on(torch.device("cpu"), 2, 32) == EightBitKernels()
    assert not fused_on(torch.device("cpu"))


def test_without_triton_a_gpu_keeps_attention_in_bf16(monkeypatch, caplog):
    monkeypatch.setattr(selection, "find_spec", lambda name: None)
    assert eight_bit_on.__wrapped__(torch.device("cuda", 0), 2, 32) is None
    assert "attention runs in bf16" in caplog.text


def test_a_kernel_that_is_off_is_not_taken(monkeypatch, caplog):
    monkeypatch.setattr(selection, "_difference", lambda *arguments: float("nan"))
    monkeypatch.setitem(sys.modules, "avatar.model.kernels.attention", selection.attention_8bit)
    fake = type("Module", (), dict.fromkeys(("quantise_queries", "write")))
    monkeypatch.setitem(sys.modules, "avatar.model.kernels.qkv", fake)
    monkeypatch.setattr("avatar.model.kernels.attention", selection.attention_8bit, raising=False)
    monkeypatch.setattr("avatar.model.kernels.qkv", fake, raising=False)
    monkeypatch.setattr(selection, "find_spec", lambda name: True)
    assert eight_bit_on.__wrapped__(torch.device("cuda", 0), 2, 32) is None
    assert "off by" in caplog.text
