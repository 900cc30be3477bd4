"""The most in use on each GPU while something runs, as NVML tells it. No torch."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from avatar.hardware.nvml import open_driver

NVML_SAMPLE_S = 0.05


@contextmanager
def nvml_peaks() -> Iterator[dict[int, int]]:
    """Bytes in use on every card from here to the end, other programs' too, by NVML's index; it fills up."""
    peaks: dict[int, int] = {}
    driver, done = open_driver(), threading.Event()

    def sample() -> None:
        while driver.cards and not done.wait(NVML_SAMPLE_S):
            for card in driver.cards:
                memory = card.memory()
                if memory is not None:
                    peaks[card.index] = max(peaks.get(card.index, 0), memory.used_bytes)

    watcher = threading.Thread(target=sample, name="nvml", daemon=True)
    watcher.start()
    try:
        yield peaks
    finally:
        done.set()
        watcher.join()
        driver.close()
