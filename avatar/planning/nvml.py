"""NVIDIA's management library, asked question by question: an answer, or None and the reason.

It knows nothing of presets or plans; inventory and gauges put its answers together.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pynvml


@dataclass(frozen=True)
class CardMemory:
    """Bytes of one GPU; used leaves out what the driver reserves for itself, where it tells that apart."""

    total_bytes: int
    free_bytes: int
    used_bytes: int


class Card:
    """One GPU that this process may use. A question that NVML refuses gives None and a line in `errors`."""

    def __init__(self, index: int, handle: Any, errors: list[str] | None = None) -> None:
        """index: NVML's number of the card; of a MIG slice, its place in CUDA_VISIBLE_DEVICES."""
        self.index = index
        self.errors: list[str] = errors or []
        self._handle = handle

    def _ask(self, what: str, *functions: Callable[[Any], Any]) -> Any:
        """The answer of the first of the functions that this driver knows."""
        if self._handle is None:
            return None
        for function in functions[:-1]:
            try:
                return function(self._handle)
            except (pynvml.NVMLError_FunctionNotFound, pynvml.NVMLError_NotSupported):
                continue  # an older driver, or a card without it: the next function asks the same
            except pynvml.NVMLError as error:
                return self._refused(what, error)
        try:
            return functions[-1](self._handle)
        except pynvml.NVMLError as error:
            return self._refused(what, error)

    def _refused(self, what: str, error: pynvml.NVMLError) -> None:
        self.errors.append(f"{what}: {error}")

    def name(self) -> str | None:
        return self._ask("name", pynvml.nvmlDeviceGetName)

    def uuid(self) -> str | None:
        return self._ask("UUID", pynvml.nvmlDeviceGetUUID)

    def compute_capability(self) -> tuple[int, int] | None:
        return self._ask("compute capability", pynvml.nvmlDeviceGetCudaComputeCapability)

    def memory(self) -> CardMemory | None:
        info = self._ask(
            "memory",
            lambda handle: pynvml.nvmlDeviceGetMemoryInfo(handle, pynvml.nvmlMemory_v2),
            pynvml.nvmlDeviceGetMemoryInfo,
        )
        return CardMemory(info.total, info.free, info.used) if info else None

    def processes(self) -> dict[int, int] | None:
        """Bytes by process id; a process whose bytes the driver does not tell counts 0."""
        compute = self._ask(
            "processes",
            pynvml.nvmlDeviceGetComputeRunningProcesses_v3,
            pynvml.nvmlDeviceGetComputeRunningProcesses_v2,
        )
        return None if compute is None else {process.pid: process.usedGpuMemory or 0 for process in compute}

    def utilization_percent(self) -> int | None:
        rates = self._ask("utilisation", pynvml.nvmlDeviceGetUtilizationRates)
        return None if rates is None else rates.gpu

    def temperature_c(self) -> int | None:
        return self._ask(
            "temperature",
            lambda handle: pynvml.nvmlDeviceGetTemperatureV(handle, pynvml.NVML_TEMPERATURE_GPU),
            lambda handle: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
        )


@dataclass(frozen=True)
class Driver:
    """The NVIDIA driver as this process sees it; reason: why there are no cards, empty when there are."""

    version: str | None
    cards: tuple[Card, ...]
    reason: str = ""
    is_open: bool = True

    def close(self) -> None:
        """Let go of the library; the cards answer no more."""
        if self.is_open:
            pynvml.nvmlShutdown()


def open_driver() -> Driver:
    """Ask the driver which GPUs this process may use (CUDA_VISIBLE_DEVICES is obeyed). Never raises."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return Driver(None, (), _why_none(error), is_open=False)
    version = None
    try:
        version = pynvml.nvmlSystemGetDriverVersion()
        num_cards = pynvml.nvmlDeviceGetCount()
    except pynvml.NVMLError as error:
        return Driver(version, (), f"The NVIDIA driver does not answer: {error}.")
    if not num_cards:
        return Driver(version, (), "The NVIDIA driver sees no GPU.")
    cards = [_open(index) for index in range(num_cards)]
    choice = os.environ.get("CUDA_VISIBLE_DEVICES")
    if choice is not None:
        cards = _visible(cards, choice)
        if not cards:
            reason = f"CUDA_VISIBLE_DEVICES={choice!r} hides the {num_cards} GPUs of this machine."
            return Driver(version, (), reason)
    return Driver(version, tuple(cards))


def _open(index: int) -> Card:
    try:
        return Card(index, pynvml.nvmlDeviceGetHandleByIndex(index))
    except pynvml.NVMLError as error:
        return Card(index, None, [f"handle: {error}"])


def _visible(cards: list[Card], choice: str) -> list[Card]:
    """The cards that CUDA_VISIBLE_DEVICES names, in its order, up to the first name without one."""
    chosen: list[Card] = []
    for word in (part.strip() for part in choice.split(",")):
        if word.isdigit():
            found = [card for card in cards if card.index == int(word)]
        elif word.startswith("MIG-"):
            found = _open_slice(word, len(chosen))
        else:
            found = [card for card in cards if word and (card.uuid() or "").startswith(word)]
        if len(found) != 1:
            break
        chosen += found
    return chosen


def _open_slice(uuid: str, place: int) -> list[Card]:
    try:
        return [Card(place, pynvml.nvmlDeviceGetHandleByUUID(uuid.encode()))]
    except pynvml.NVMLError:
        return []


def _why_none(error: pynvml.NVMLError) -> str:
    if isinstance(error, pynvml.NVMLError_LibraryNotFound):
        return "No NVIDIA driver is installed here (libnvidia-ml.so.1 is not found)."
    if isinstance(error, pynvml.NVMLError_DriverNotLoaded):
        return "The NVIDIA driver is installed but not loaded."
    if isinstance(error, pynvml.NVMLError_NoPermission):
        return "This user may not talk to the NVIDIA driver."
    return f"The NVIDIA driver does not answer: {error}."
