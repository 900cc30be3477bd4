"""Queries to NVIDIA's management library (NVML); each returns an answer, or None and records the reason.

This module knows nothing of presets or plans; inventory and gauges combine its answers.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pynvml

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CardMemory:
    """Bytes of one GPU; used excludes the driver's own reservation, where NVML reports it separately."""

    total_bytes: int
    free_bytes: int
    used_bytes: int


class Card:
    """One GPU that this process may use. A query that NVML refuses returns None and adds to `errors`."""

    def __init__(self, index: int, handle: Any, errors: list[str] | None = None) -> None:
        """index: NVML's number of the card; MIG instances are numbered after all cards."""
        self.index = index
        self.errors: list[str] = errors or []
        self._handle = handle

    def _ask(self, what: str, *functions: Callable[[Any], Any]) -> Any:
        """The answer of the first function that this driver supports."""
        if self._handle is None:
            return None
        for function in functions[:-1]:
            try:
                return function(self._handle)
            except (pynvml.NVMLError_FunctionNotFound, pynvml.NVMLError_NotSupported):
                continue  # an older driver, or an unsupported card: the next function asks the same
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
        """Bytes by process id; 0 for a process whose bytes the driver does not report."""
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
    """The NVIDIA driver as this process sees it; reason: why there are no cards, empty when there are.

    cuda: the newest CUDA that it supports, as "12.4"; None if it does not report it.
    """

    version: str | None
    cards: tuple[Card, ...]
    reason: str = ""
    is_open: bool = True
    cuda: str | None = None

    def close(self) -> None:
        """Shut NVML down; the cards cannot be queried afterwards."""
        if self.is_open:
            pynvml.nvmlShutdown()


def open_driver() -> Driver:
    """Find the GPUs that this process may use, as CUDA_VISIBLE_DEVICES limits them. Never raises.

    Numbers in CUDA_VISIBLE_DEVICES are NVML's: in all our subprocesses CUDA counts by PCI bus, as NVML does.
    """
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return Driver(None, (), _why_none(error), is_open=False)
    version, cuda = None, _cuda_version()
    try:
        version = pynvml.nvmlSystemGetDriverVersion()
        num_cards = pynvml.nvmlDeviceGetCount()
    except pynvml.NVMLError as error:
        return Driver(version, (), f"The NVIDIA driver does not answer: {error}.", cuda=cuda)
    if not num_cards:
        return Driver(version, (), "The NVIDIA driver sees no GPU.", cuda=cuda)
    by_number = _open_all(num_cards)
    choice = os.environ.get("CUDA_VISIBLE_DEVICES")
    cards = [card for found in by_number for card in found] if choice is None else _visible(by_number, choice)
    if not cards:
        reason = "All GPUs are divided (MIG), and no instance has been made."
        if choice is not None:
            reason = f"CUDA_VISIBLE_DEVICES={choice!r} hides the {num_cards} GPUs of this machine."
        return Driver(version, (), reason, cuda=cuda)
    return Driver(version, tuple(cards), cuda=cuda)


def _cuda_version() -> str | None:
    """The newest CUDA that the driver supports: NVML returns 12040 for 12.4."""
    try:
        number = int(pynvml.nvmlSystemGetCudaDriverVersion_v2())
    except pynvml.NVMLError as error:
        log.info("NVML does not tell the driver's CUDA version: %s", error)
        return None
    return f"{number // 1000}.{number % 1000 // 10}"


def _open_all(num_cards: int) -> list[list[Card]]:
    """By card number, the devices that CUDA may use: the card, or its MIG instances."""
    opened: list[list[Card]] = []
    num_instances = 0
    for index in range(num_cards):
        card = _open(index)
        instances = _instances(card)
        if instances is None:
            opened.append([card])
            continue
        first = num_cards + num_instances
        opened.append([Card(first + place, handle) for place, handle in enumerate(instances)])
        num_instances += len(instances)
    return opened


def _open(index: int) -> Card:
    try:
        return Card(index, pynvml.nvmlDeviceGetHandleByIndex(index))
    except pynvml.NVMLError as error:
        return Card(index, None, [f"handle: {error}"])


def _instances(card: Card) -> list[Any] | None:
    """Handles of a card's MIG instances; None for a card that is not partitioned."""
    handle = card._handle
    try:
        if handle is None or pynvml.nvmlDeviceGetMigMode(handle)[0] != pynvml.NVML_DEVICE_MIG_ENABLE:
            return None
        most = pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)
    except pynvml.NVMLError:
        return None  # the card or the driver does not support MIG
    found = []
    for place in range(most):
        try:
            found.append(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, place))
        except pynvml.NVMLError_NotFound:
            continue  # not every possible instance exists
        except pynvml.NVMLError as error:
            log.warning("GPU %d: NVML gives no MIG instance %d: %s", card.index, place, error)
    return found


def _visible(by_number: list[list[Card]], choice: str) -> list[Card]:
    """The cards that CUDA_VISIBLE_DEVICES names, in its order, up to the first name without a card.

    The number or UUID of a partitioned card stands for its first instance.
    """
    chosen: list[Card] = []
    everything = [card for cards in by_number for card in cards]
    for word in (part.strip() for part in choice.split(",")):
        if word.isdigit():
            found = by_number[int(word)][:1] if int(word) < len(by_number) else []
        else:
            found = [card for card in everything if word and (card.uuid() or "").startswith(word)]
            if not found and word.startswith("MIG-"):
                found = _open_instance(word, len(by_number) + len(chosen))
        if len(found) != 1:
            break
        chosen += found
    return chosen


def _open_instance(uuid: str, number: int) -> list[Card]:
    """A MIG instance of a card that NVML does not enumerate, as in a container."""
    try:
        return [Card(number, pynvml.nvmlDeviceGetHandleByUUID(uuid.encode()))]
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
