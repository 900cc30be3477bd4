"""A plan: what each device will hold, in bytes, and whether it fits. Plain data; the planner makes it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

from avatar.planning.placement import ALL_ON_GPU, Placement

GIB = 2**30


class RunPhase(StrEnum):
    """A phase of a run during which the same items are in memory."""

    ENCODE = "encode"  # text and portrait: the side models, before a run begins
    LISTEN = "listen"  # the next window of speech is encoded, between two blocks
    DENOISE = "denoise"
    DECODE = "decode"


ALWAYS = (RunPhase.ENCODE, RunPhase.LISTEN, RunPhase.DENOISE, RunPhase.DECODE)


@dataclass(frozen=True)
class MemoryItem:
    """One item in memory. name: a stable key, which the page translates. stages: the phases that hold it."""

    name: str
    num_bytes: int
    stages: tuple[RunPhase, ...] = ALWAYS


def bytes_by_stage(items: Iterable[MemoryItem]) -> dict[RunPhase, int]:
    """How much the items hold in each phase."""
    held = dict.fromkeys(ALWAYS, 0)
    for item in items:
        for stage in item.stages:
            held[stage] += item.num_bytes
    return held


@dataclass(frozen=True)
class DevicePlan:
    """What one GPU, or the host, will hold. index: NVML's, None for the host.

    available_bytes: what a run could use on this device; None: unknown, and then counted as nothing.
    """

    label: str
    index: int | None
    items: tuple[MemoryItem, ...]
    available_bytes: int | None
    total_bytes: int | None

    @cached_property
    def _held(self) -> dict[RunPhase, int]:
        return bytes_by_stage(self.items)

    def stage_bytes(self, stage: RunPhase) -> int:
        return self._held[stage]

    @property
    def peak_stage(self) -> RunPhase:
        return max(self._held, key=self._held.__getitem__)

    @property
    def peak_bytes(self) -> int:
        return max(self._held.values())

    @property
    def peak_items(self) -> tuple[MemoryItem, ...]:
        """The items held at the peak, largest first, as a stacked bar shows them."""
        peak = self.peak_stage
        there = [item for item in self.items if peak in item.stages and item.num_bytes]
        return tuple(sorted(there, key=lambda item: -item.num_bytes))

    @property
    def shortfall_bytes(self) -> int:
        """How much is lacking, 0 when it fits; the whole peak where available_bytes is unknown."""
        return max(0, self.peak_bytes - (self.available_bytes or 0))

    def as_dict(self) -> dict[str, Any]:
        return {
            "label": self.label,
            "index": self.index,
            "available_bytes": self.available_bytes,
            "total_bytes": self.total_bytes,
            "peak_bytes": self.peak_bytes,
            "peak_stage": str(self.peak_stage),
            "shortfall_bytes": self.shortfall_bytes,
            "items": [
                {"name": item.name, "num_bytes": item.num_bytes, "stages": [str(s) for s in item.stages]}
                for item in self.items
            ],
        }


@dataclass(frozen=True)
class Plan:
    """Every device's items for one preset.

    is_estimate: computed, not yet calibrated by a measured run. placement: what is offloaded to the host.
    weight_dtype: of the transformer, "" where there is none.
    """

    preset: str
    engine: str
    gpus: tuple[DevicePlan, ...]
    host: DevicePlan
    is_estimate: bool = True
    placement: Placement = ALL_ON_GPU
    weight_dtype: str = ""

    @property
    def devices(self) -> tuple[DevicePlan, ...]:
        return (*self.gpus, self.host)

    @property
    def fits(self) -> bool:
        return not any(device.shortfall_bytes for device in self.devices)

    @property
    def tightest(self) -> DevicePlan:
        """The device that lacks most, or has least to spare."""
        return max(self.devices, key=lambda device: device.peak_bytes - (device.available_bytes or 0))

    def peak_bytes(self, gpu_index: int) -> int | None:
        """Peak planned for a GPU by its NVML index; None for a GPU that the plan does not use."""
        return next((gpu.peak_bytes for gpu in self.gpus if gpu.index == gpu_index), None)

    @property
    def shortfall(self) -> str:
        """What is lacking, where, and which item is largest; empty when the plan fits."""
        if self.fits:
            return ""
        return self.shortfall_on(self.tightest)

    def shortfall_on(self, device: DevicePlan) -> str:
        """What is lacking on one device, and which item is largest there."""
        largest = device.peak_items[0]
        about = "about " if self.is_estimate else ""
        available = "an unknown amount" if device.available_bytes is None else gib(device.available_bytes)
        return (
            f"It needs {about}{gib(device.peak_bytes)} on {device.label}, where {available} is free: "
            f"{gib(device.shortfall_bytes)} short. "
            f"The largest item is {describe(largest.name)}, {gib(largest.num_bytes)}."
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, computed figures included."""
        return {
            "preset": self.preset,
            "engine": self.engine,
            "is_estimate": self.is_estimate,
            "fits": self.fits,
            "shortfall": self.shortfall,
            "placement": asdict(self.placement),
            "weight_dtype": self.weight_dtype,
            "gpus": [gpu.as_dict() for gpu in self.gpus],
            "host": self.host.as_dict(),
        }


def gib(num_bytes: int) -> str:
    """ "12.3 GiB" """
    return f"{num_bytes / GIB:.1f} GiB"


def describe(name: str) -> str:
    """An item's key in words: "condition_kv" → "condition K/V"."""
    return name.replace("kv", "K/V").replace("gguf", "GGUF").replace("_", " ")
