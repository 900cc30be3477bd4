"""Stop, reload, a closed tab, and other runs in the queue."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from visiting import Server, Visitor, slowed, wait_until

log = logging.getLogger(__name__)

Visit = Callable[..., Visitor]


def about(video: Path) -> dict:
    return json.loads((video.parent / "about.json").read_text())


def begin(visitor: Visitor, speech: Path) -> None:
    """Press Generate, and wait until the live player shows something."""
    visitor.choose(speech=speech)
    visitor.generate()
    visitor.wait_state("running")
    visitor.page.wait_for_function("document.querySelector('#live video')?.currentTime > 0.2")


def new_videos(server: Server, before: list[Path]) -> list[Path]:
    return [path for path in server.videos() if path not in before]


def test_stop_keeps_what_was_made(server: Server, visit: Visit, half_minute: Path):
    before = server.videos()
    visitor = visit(server.url)
    with slowed(server):
        begin(visitor, half_minute)
        pressed = time.monotonic()
        visitor.page.click("#stop:enabled")
        visitor.wait_state("stopped")
    log.info("stopped %.2f s after the press", time.monotonic() - pressed)
    assert "Stopped" in visitor.page.inner_text("#status")
    [video] = new_videos(server, before)
    assert about(video)["stopped"]
    assert 0.5 < about(video)["duration_s"] < 31
    visitor.page.wait_for_selector("#download:visible")
    visitor.show_finished()
    assert visitor.page.is_enabled("#generate")
    assert visitor.page.locator(".video .badge", has_text="stopped").count() >= 1
    wait_until(lambda: not server.leftovers(), "temporary files are gone")


def test_a_closed_tab_frees_the_engine_where_nothing_is_kept(server: Server, visit: Visit, half_minute: Path):
    before = server.videos()
    visitor = visit(server.url)
    with slowed(server):
        begin(visitor, half_minute)
        visitor.page.close()
        took = wait_until(lambda: new_videos(server, before), "the run ended and was kept")
    log.info("engine free %.2f s after the tab was closed", took)
    [video] = new_videos(server, before)
    assert about(video)["stopped"]
    wait_until(lambda: not server.leftovers(), "temporary files are gone")


def test_a_reload_ends_the_run_where_nothing_is_kept(server: Server, visit: Visit, half_minute: Path):
    before = server.videos()
    visitor = visit(server.url)
    with slowed(server):
        begin(visitor, half_minute)
        visitor.page.reload()
        wait_until(lambda: new_videos(server, before), "the run ended and was kept")
    visitor.page.reload()
    [video] = new_videos(server, before)
    visitor.page.wait_for_selector(f'.video [data-id="{video.parent.name}"]')
    visitor.wait_state("stopped")
    assert visitor.page.is_enabled("#generate")


@pytest.mark.slow
def test_the_second_waits_and_the_third_is_refused(
    keeping: Server, visit: Visit, half_minute: Path, short_speech: Path
):
    first, second, third = (visit(keeping.url) for _ in range(3))
    for late in (second, third):
        late.choose(speech=short_speech)
    with slowed(keeping):
        begin(first, half_minute)
        second.generate()
        second.wait_state("waiting")
        assert "You are next" in second.page.inner_text("#status")
        third.generate()
        assert "The queue is full: 1 waiting" in third.toast()
        assert third.page.is_enabled("#generate")
        first.page.click("#stop:enabled")
    second.wait_state("running", "done")
    second.wait_state("done")


def test_leaving_the_queue(keeping: Server, visit: Visit, half_minute: Path, short_speech: Path):
    first, second = visit(keeping.url), visit(keeping.url)
    second.choose(speech=short_speech)
    with slowed(keeping):
        begin(first, half_minute)
        second.generate()
        second.wait_state("waiting")
        second.page.click("#stop:enabled")
        second.wait_state("stopped")
        assert "before the first frame" in second.page.inner_text("#status")
        first.page.click("#stop:enabled")
        first.wait_state("stopped")
