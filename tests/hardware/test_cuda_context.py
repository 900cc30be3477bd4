"""A CUDA context opened ahead: what is asked of the driver, and a driver that is missing or refuses."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from avatar.hardware import cuda_context
from avatar.hardware.cuda_context import open_ahead


class FakeDriver:
    """Records calls of the driver's functions; refuses the one that is named."""

    def __init__(self, refuses: str = "") -> None:
        self.calls: list[str] = []
        self.index: int | None = None
        self._refuses = refuses

    def __getattr__(self, name: str):
        def call(*arguments) -> int:
            self.calls.append(name)
            if name == "cuDeviceGet":
                self.index = arguments[1].value
            return 100 if name == self._refuses else 0

        return call


def opened(monkeypatch: pytest.MonkeyPatch, driver: FakeDriver, index: int) -> None:
    monkeypatch.setattr(cuda_context.ctypes, "CDLL", lambda name: driver)
    open_ahead(index).join()


def test_the_context_that_pytorch_uses_is_opened(monkeypatch):
    driver = FakeDriver()
    opened(monkeypatch, driver, 3)
    assert driver.calls == ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain"]
    assert driver.index == 3


@pytest.mark.parametrize("refused", ["cuInit", "cuDeviceGet"])
def test_a_driver_that_refuses_is_asked_no_more(monkeypatch, caplog, refused):
    driver = FakeDriver(refused)
    with caplog.at_level(logging.INFO):
        opened(monkeypatch, driver, 0)
    assert driver.calls[-1] == refused
    assert f"{refused} returned 100" in caplog.text


def test_without_a_driver_nothing_happens(monkeypatch, caplog):
    def missing(name: str) -> SimpleNamespace:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(cuda_context.ctypes, "CDLL", missing)
    with caplog.at_level(logging.INFO):
        open_ahead(0).join()
    assert "not opened ahead: libcuda.so.1" in caplog.text
