"""Our own kernels against their slow twins, on the CPU by Triton's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from avatar.model import device_checks
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


@pytest.fixture
def on_a_gpu(monkeypatch) -> None:
    """A card with fp8 cores, Triton, and nothing found missing yet."""
    monkeypatch.setattr(device_checks, "_missing", {})
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 9))
    monkeypatch.setattr(selection, "find_spec", lambda name: True)
    monkeypatch.setitem(sys.modules, "avatar.model.kernels.attention", selection.attention_8bit)
    fake = type("Module", (), dict.fromkeys(("quantise_queries", "write")))
    monkeypatch.setitem(sys.modules, "avatar.model.kernels.qkv", fake)
    monkeypatch.setattr("avatar.model.kernels.attention", selection.attention_8bit, raising=False)
    monkeypatch.setattr("avatar.model.kernels.qkv", fake, raising=False)


def on_the_card() -> EightBitKernels | None:
    return eight_bit_on.__wrapped__(torch.device("cuda", 0), 2, 32)


def test_without_triton_a_gpu_keeps_attention_in_bf16(monkeypatch, on_a_gpu):
    monkeypatch.setattr(selection, "find_spec", lambda name: None)
    assert on_the_card() is None
    assert not fused_on.__wrapped__(torch.device("cuda", 0))
    assert [code for code, _ in device_checks.missing()] == ["attention", "kernels"]
    assert "Triton is not installed" in device_checks.reason_missing("attention")


@pytest.mark.parametrize(("difference", "missing"), [(float("nan"), True), (0.5, True), (0.001, False)])
def test_a_kernel_that_is_off_is_not_taken(monkeypatch, on_a_gpu, difference, missing):
    monkeypatch.setattr(selection, "_difference", lambda *arguments: difference)
    assert (on_the_card() is None) == missing
    assert bool(device_checks.missing()) == missing
    if missing:
        assert "is off by" in device_checks.reason_missing("attention")


def test_a_card_without_fp8_cores_lacks_nothing_it_could_have(monkeypatch, on_a_gpu):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 6))
    monkeypatch.setattr(selection, "_difference", None)  # it is not tried
    assert on_the_card() is None
    assert device_checks.missing() == []
