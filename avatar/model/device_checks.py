"""Try each fast path once on the actual device, rather than assume that it works.

A process that finds a fast path missing uses the slower fallback, and a notice says what that costs. What
worked is recorded for later processes where remember_trials() says so.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from avatar.hardware.fast_paths import FAST_PATHS
from avatar.model.torch_compat import cudnn_attention, set_expandable_segments, without_caches
from avatar.model.trial_records import TrialRecords

log = logging.getLogger(__name__)

PINNED_TRIAL_BYTES = 2**20
TOLERANCE = 2e-2  # between bf16 attention and float32

_missing: dict[str, str] = {}  # code to reason
_records: TrialRecords | None = None
_trying = threading.RLock()  # a compiler is tried in another thread than the rest


def missing() -> list[tuple[str, str]]:
    """Code and text of every fast path that this process has found missing so far."""
    return [(code, text) for code, text in FAST_PATHS.items() if code in _missing]


def reason_missing(code: str) -> str:
    """Why a fast path is missing; "" if it has not been found missing."""
    return _missing.get(code, "")


def forget() -> None:
    """Forget all failures, before another device is checked."""
    _missing.clear()


def found_missing(code: str, error: BaseException) -> None:
    """Record that a fast path failed, so that its fallback is used. Logged once."""
    if code not in _missing:
        _missing[code] = reason_of(error)
        log.warning("%s (%s)", FAST_PATHS[code], _missing[code])


def forget_error(device: torch.device) -> None:
    """Consume CUDA's pending error here: it reports a failed call again at the next kernel launch."""
    with suppress(RuntimeError):
        torch.zeros(1, device=device)


def reason_of(error: BaseException) -> str:
    """An error's type and first line, plus the second line if the first ends with a colon."""
    lines = str(error).strip().splitlines()
    reason = " ".join(lines[:2] if lines and lines[0].endswith(":") else lines[:1])
    return f"{type(error).__name__}: {reason}" if reason else type(error).__name__


def remember_trials(folder: Path | None) -> None:
    """From now on, skip trials that worked before, as recorded in a folder, and record others there.

    None: try everything, record nothing, as a process does that has not called this.
    """
    global _records
    _records = None if folder is None else TrialRecords(folder)


def works(
    code: str, trial: Callable[[torch.device], None], device: torch.device, *, lasting: bool = True
) -> bool:
    """Try a fast path; any exception except out of memory means that it does not work.

    lasting: whether a success may be recorded for later processes; see remember_trials.
    """
    records = _records if lasting else None
    if records is not None and records.has(code, trial, device):
        return True
    try:
        trial(device)
    except torch.OutOfMemoryError:
        raise  # not the fast path's fault; the run falls back to a smaller setting
    except Exception as error:
        found_missing(code, error)
        return False
    if records is not None:
        records.add(code, trial, device)
    return True


def compiles(device: torch.device) -> bool:
    """Whether compiled code can be built for a device and run on it; a second thread waits for the answer."""
    with _trying:
        return _compiles(device)


@functools.cache
def _compiles(device: torch.device) -> bool:
    return works("compile", _try_compiling, device)


@functools.cache
def has_cudnn_attention(device: torch.device) -> bool:
    """Whether cuDNN's attention works in bf16 on a CUDA device and returns a correct log-sum-exp."""
    return works("cudnn", _try_cudnn, device)


@functools.cache
def pins(device: torch.device) -> bool:
    """Whether PyTorch can allocate pinned memory for a CUDA device."""
    return works("pinned", _try_pinning, device, lasting=False)


@functools.cache
def grows_segments(device: torch.device) -> bool:
    """Enable CUDA's expandable segments, and disable them again if the first allocation fails.

    It does on some cards under WSL2. Source: pytorch/pytorch issue 192330.
    """
    grows = works("segments", _try_segments, device, lasting=False)
    if not grows:
        set_expandable_segments(False)
    return grows


def _try_compiling(device: torch.device) -> None:
    values = torch.arange(64.0, device=device)
    with without_caches():
        out = torch.compile(_arithmetic, fullgraph=True, dynamic=False)(values)
    _require(torch.allclose(out, _arithmetic(values)), "compiled code gives other numbers")


def _arithmetic(x: Tensor) -> Tensor:
    return torch.nn.functional.silu(x * 2 + 1)


def _try_cudnn(device: torch.device) -> None:
    """Try cuDNN's attention with the model's head size and memory layout, N h d."""
    draw = torch.Generator(device).manual_seed(0)
    q, k, v = (
        torch.randn(1, count, 40, 128, dtype=torch.bfloat16, device=device, generator=draw).transpose(1, 2)
        for count in (256, 640, 640)
    )
    out, lse = cudnn_attention(q, k, v)
    scores = q.float() @ k.float().transpose(-1, -2) * q.shape[-1] ** -0.5
    expected = scores.softmax(-1) @ v.float()
    sums = scores.logsumexp(-1)
    _require(torch.allclose(out.float(), expected, atol=TOLERANCE), "cuDNN's attention gives other numbers")
    _require(torch.allclose(lse.reshape(sums.shape), sums, atol=TOLERANCE), "its log-sum-exp is another")


def _try_pinning(device: torch.device) -> None:
    staged = torch.zeros(PINNED_TRIAL_BYTES, dtype=torch.uint8, pin_memory=True)
    staged.to(device, non_blocking=True)
    torch.cuda.synchronize(device)


def _try_segments(device: torch.device) -> None:
    set_expandable_segments(True)
    torch.empty(1, device=device)


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise RuntimeError(otherwise)
