"""Stop, reload, a closed tab, and other runs in the queue."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from visiting import Server, Visitor, start_server, wait_until

log = logging.getLogger(__name__)

Visit = Callable[..., Visitor]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with one place in its queue."""
    running = start_server(tmp_path_factory.mktemp("small"), "--queue-size", "1")
    yield running
    running.stop()


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


def test_stop_keeps_what_was_made(server: Server, visit: Visit, long_speech: Path):
    before = server.videos()
    visitor = visit(server.url)
    begin(visitor, long_speech)
    pressed = time.monotonic()
    visitor.page.click("#stop:enabled")
    visitor.wait_state("stopped")
    log.info("stopped %.2f s after the press", time.monotonic() - pressed)
    assert "Stopped" in visitor.page.inner_text("#status")
    [video] = new_videos(server, before)
    assert about(video)["stopped"]
    assert 0.5 < about(video)["duration_s"] < 50
    visitor.page.wait_for_selector("#download:visible")
    visitor.show_finished()
    assert visitor.page.is_enabled("#generate")
    assert visitor.page.locator(".video .badge", has_text="stopped").count() >= 1
    wait_until(lambda: not server.leftovers(), "temporary files are gone")


def test_a_closed_tab_frees_the_engine_where_nothing_is_kept(server: Server, visit: Visit, long_speech: Path):
    before = server.videos()
    visitor = visit(server.url)
    begin(visitor, long_speech)
    visitor.page.close()
    took = wait_until(lambda: new_videos(server, before), "the run ended and was kept")
    log.info("engine free %.2f s after the tab was closed", took)
    [video] = new_videos(server, before)
    assert about(video)["stopped"]
    wait_until(lambda: not server.leftovers(), "temporary files are gone")


def test_a_reload_ends_the_run_where_nothing_is_kept(server: Server, visit: Visit, long_speech: Path):
    before = server.videos()
    visitor = visit(server.url)
    begin(visitor, long_speech)
    visitor.page.reload()
    wait_until(lambda: new_videos(server, before), "the run ended and was kept")
    visitor.page.reload()
    [video] = new_videos(server, before)
    visitor.page.wait_for_selector(f'.video [data-id="{video.parent.name}"]')
    visitor.wait_state("stopped")
    assert visitor.page.is_enabled("#generate")


@pytest.mark.slow
def test_the_second_waits_and_the_third_is_refused(
    small: Server, visit: Visit, long_speech: Path, short_speech: Path
):
    first, second, third = (visit(small.url) for _ in range(3))
    begin(first, long_speech)
    second.choose(speech=short_speech)
    second.generate()
    second.wait_state("waiting")
    assert "You are next" in second.page.inner_text("#status")
    third.choose(speech=short_speech)
    third.generate()
    assert "The queue is full: 1 waiting" in third.toast()
    assert third.page.is_enabled("#generate")
    first.page.click("#stop:enabled")
    second.wait_state("running", "done")
    second.wait_state("done")


def test_leaving_the_queue(small: Server, visit: Visit, long_speech: Path, short_speech: Path):
    first, second = visit(small.url), visit(small.url)
    begin(first, long_speech)
    second.choose(speech=short_speech)
    second.generate()
    second.wait_state("waiting")
    second.page.click("#stop:enabled")
    second.wait_state("stopped")
    assert "before the first frame" in second.page.inner_text("#status")
    first.page.click("#stop:enabled")
    first.wait_state("stopped")
