"""Page-locked memory: registered with the driver, exact, unlocked when the last tensor is gone; the driver
stands in for CUDA's."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from avatar.errors import DoesNotFit
from avatar.model import device_checks
from avatar.pipeline import device
from avatar.pipeline.device import downloading, uploaded
from avatar.pipeline.offload import pinned
from avatar.pipeline.offload.pinned import host_buffer, pinned_bytes

CUDA = torch.device("cuda", 0)


class Driver:
    """What CUDA's runtime does about locking memory."""

    def __init__(self) -> None:
        self.locked: dict[int, int] = {}
        self.answer = 0

    def cudaHostRegister(self, address: int, num_bytes: int, flags: int) -> int:
        if not self.answer:
            self.locked[address] = num_bytes
        return self.answer

    def cudaHostUnregister(self, address: int) -> int:
        del self.locked[address]
        return 0


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    made = Driver()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: made)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "check_error", lambda answer: None)
    monkeypatch.setattr(pinned, "forget_error", lambda device: None)
    return made


def test_pages_are_locked_until_the_last_tensor_on_them_is_gone(driver: Driver):
    buffer = host_buffer(3_000_001, CUDA)
    assert driver.locked == {buffer.data_ptr(): 3_000_001} == pinned._pinned
    assert pinned_bytes() == 3_000_001
    assert buffer.data_ptr() % 4096 == 0
    buffer.fill_(7)
    part = buffer[256:1280].view(torch.float32)
    other = host_buffer(10, CUDA)
    del buffer
    assert pinned_bytes() == 3_000_011
    assert part.view(torch.uint8).eq(7).all()
    del part
    assert pinned_bytes() == 10
    del other
    assert not driver.locked
    assert pinned_bytes() == 0


def test_a_host_that_locks_no_more_gives_pageable_memory(driver: Driver, monkeypatch):
    monkeypatch.setattr(device_checks, "_missing", {})
    driver.answer = 2
    buffer = host_buffer(2**20, CUDA)
    assert len(buffer.fill_(7)) == 2**20
    assert pinned_bytes() == 0
    assert [code for code, _ in device_checks.missing()] == ["pinned"]
    driver.answer = 0
    locked = host_buffer(10, CUDA)  # a small piece may still be
    assert pinned_bytes() == len(locked)


def test_more_than_the_machine_can_map_is_refused(driver: Driver):
    with pytest.raises(DoesNotFit, match="The host has no"):
        host_buffer(2**60, CUDA)
    assert not driver.locked


def test_nothing_is_locked_for_a_cpu(driver: Driver):
    assert len(host_buffer(100, torch.device("cpu"))) == 100
    assert not driver.locked


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """A system that pinned something at first, and pins no more; the tries to pin, in order."""
    monkeypatch.setattr(device_checks, "_missing", {})
    monkeypatch.setattr(device, "_pinning_no_more", set())
    monkeypatch.setattr(device, "pins", lambda _: True)
    monkeypatch.setattr(device, "forget_error", lambda _: None)
    tries, empty = [], torch.empty

    def refusing(*shape, pin_memory: bool = False, **options):
        tries.append(pin_memory)
        if pin_memory:
            raise RuntimeError("CUDA error: out of memory")
        return empty(*shape, **options)

    monkeypatch.setattr(torch, "empty", refusing)
    return tries


def test_what_comes_down_is_pageable_once_no_more_is_pinned(full: list[bool]):
    values = torch.arange(6.0).reshape(2, 3)
    for _ in range(2):
        assert torch.equal(downloading(values), values)
    assert full == [True, False, False], "it is not tried again"
    assert [code for code, _ in device_checks.missing()] == ["pinned"]


def test_what_goes_up_is_pageable_once_no_more_is_pinned(full: list[bool]):
    def pin_memory():
        return torch.empty(1, pin_memory=True)

    values = SimpleNamespace(device=torch.device("cpu"), pin_memory=pin_memory)
    values.to = lambda device, non_blocking: (device, non_blocking)
    for _ in range(2):
        assert uploaded(values, CUDA) == (CUDA, True)
    assert full == [True]
    assert [code for code, _ in device_checks.missing()] == ["pinned"]
