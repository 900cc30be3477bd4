"""The page on a machine of four imagined GPUs: gauges, and the plan before anything runs."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, expect
from visiting import Server, Visitor, start_server

Visit = Callable[..., Visitor]
OTHERS_GIB = 6
OURS_GIB = 2  # held by this test, on the GPU with the most free memory


@pytest.fixture(scope="module")
def machine(fake_driver: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Four cards of 24 GiB: others hold 6 GiB of the first and 3 of two more, this test 2 of one."""
    running = start_server(
        tmp_path_factory.mktemp("machine"),
        LD_LIBRARY_PATH=str(fake_driver),
        FAKE_NVML_GPUS="24576,24576,24576,24576",
        FAKE_NVML_PROCESSES=f"0:1:{OTHERS_GIB * 1024},1:1:3072,2:{os.getpid()}:{OURS_GIB * 1024},3:1:3072",
    )
    yield running
    running.stop()


def number(words: str, pattern: str) -> float:
    found = re.search(pattern, words)
    assert found, words
    return float(found[1])


def right_end(bars: Locator) -> float:
    """The right edge of the last bar, in pixels of the page."""
    box = bars.last.bounding_box()
    assert box is not None
    return box["x"] + box["width"]


def test_a_row_for_each_gpu_the_host_and_pinned_memory(machine: Server, visit: Visit):
    page = visit(machine.url, viewport={"width": 390, "height": 900}).page
    rows = page.locator("#gauges .gauge")
    expect(rows).to_have_count(7)
    first = rows.nth(0).inner_text()
    assert number(first, r"([\d.]+) / 24\.0 GiB") == pytest.approx(OTHERS_GIB, abs=0.6)
    assert number(first, r"others ([\d.]+)") == pytest.approx(OTHERS_GIB, abs=0.6)
    for words in ("ours 0.0", "planned –", "peak 0.0"):
        assert words in first
    assert "others 2.0" in rows.nth(2).inner_text(), "the test is none of the server's processes"
    assert "Pinned memory" in rows.nth(6).inner_text()
    for width in (390, 1440):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        chip, brand = page.locator(".machine-chip").bounding_box(), page.locator(".brand").bounding_box()
        assert chip is not None
        assert brand is not None
        assert brand["height"] < 30, "one line"
        assert brand["x"] + brand["width"] < chip["x"]
        assert chip["x"] + chip["width"] <= width


def test_the_plan_is_drawn_against_what_is_free_before_anything_runs(machine: Server, visit: Visit):
    page = visit(machine.url).page
    page.click(".presets summary")
    page.click('.card[data-id="24gb"]')
    gpu = page.locator("#plan .gauge").first
    expect(gpu).to_contain_text("GPU 2")
    words = gpu.inner_text()
    free, total = number(words, r"of ([\d.]+) GiB free"), number(words, r"· ([\d.]+) in all")
    assert total == 24.0
    assert free == pytest.approx(24 - OURS_GIB, abs=0.6)
    held = gpu.locator(".meter .others").bounding_box()
    bar = gpu.locator(".meter").bounding_box()
    assert held is not None
    assert bar is not None
    need = number(words, r"([\d.]+) of [\d.]+ GiB free")
    scale = max(total, total - free + need)
    assert held["width"] / bar["width"] == pytest.approx((total - free) / scale, abs=0.02)
    items = gpu.locator(".meter [class^=item-]")
    assert items.count() >= 3
    assert (right_end(items) - bar["x"]) / bar["width"] == pytest.approx(
        (total - free + need) / scale, abs=0.03
    )
    assert gpu.locator(".meter .limit").count() == (scale > total)
    assert ("short" in words) == (need > free)
