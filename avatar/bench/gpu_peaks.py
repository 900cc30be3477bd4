"""Peak memory of each GPU while something runs, sampled through NVML. Does not import torch."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from avatar.hardware.nvml import open_driver

NVML_SAMPLE_S = 0.05


@contextmanager
def nvml_peaks() -> Iterator[dict[int, int]]:
    """Context that yields peak bytes in use by NVML index, other programs' included; filled while it runs."""
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
