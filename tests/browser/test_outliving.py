"""Runs that outlive their page: reloads, a lost network, a second tab, another visitor, a closed tab."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from visiting import Server, Visitor, slowed, wait_until

Visit = Callable[..., Visitor]
PLAYING = "document.querySelector('#live video')?.currentTime > 0.2"
DECODED = """(() => { const v = document.querySelector('#live video');
  return v ? [v.webkitAudioDecodedByteCount, v.webkitDecodedFrameCount, v.currentTime] : [0, 0, 0]; })()"""
OFFLINE_S = 20


def share(page: Page) -> float:
    """The fraction of the run that is made, 0 to 1, as the page shows it."""
    return float(page.get_attribute("#status [role=progressbar]", "aria-valuenow") or 0) / 100


def begin(visitor: Visitor, speech: Path, made: float = 0.0) -> None:
    """Press Generate, and wait until the live player plays and this fraction is made."""
    visitor.choose(speech=speech)
    visitor.generate()
    visitor.wait_state("running")
    visitor.page.wait_for_function(PLAYING)
    wait_until(lambda: share(visitor.page) >= made, f"{100 * made:.0f} % are made", 120)


def assert_plays_on(visitor: Visitor, speech: Path) -> None:
    """The page shows the run and its inputs; picture and sound go on."""
    page = visitor.page
    visitor.wait_state("running")
    page.wait_for_function(PLAYING)
    before = page.evaluate(DECODED)
    page.wait_for_function(f"document.querySelector('#live video').currentTime > {before[2] + 1.5}")
    after = page.evaluate(DECODED)
    assert after[0] > before[0], "sound"
    assert after[1] > before[1], "picture"
    assert page.is_enabled("#stop")
    assert page.is_disabled("#generate")
    assert_chosen(visitor, speech)


def assert_chosen(visitor: Visitor, speech: Path) -> None:
    visitor.page.wait_for_selector("#portrait img")
    visitor.wait_speech()
    link = visitor.page.locator("#speech a[download], #speech audio").first
    said = link.evaluate("e => e.getAttribute('download') || e.src") if link.count() else ""
    assert not said or speech.stem in said


def about(server: Server) -> list[dict[str, Any]]:
    return [json.loads((video.parent / "about.json").read_text()) for video in server.videos()]


@pytest.mark.parametrize("made", [0.3, pytest.param(0.6, marks=pytest.mark.slow)])
def test_a_reload_goes_on_where_the_run_is(keeping: Server, visit: Visit, half_minute: Path, made: float):
    before = len(keeping.videos())
    visitor = visit(keeping.url)
    with slowed(keeping):
        begin(visitor, half_minute, made)
        visitor.page.reload()
        assert_plays_on(visitor, half_minute)
        assert share(visitor.page) >= made
    visitor.page.wait_for_selector('#status .status[data-state="done"]', timeout=120_000)
    visitor.show_finished()
    assert len(keeping.videos()) == before + 1
    assert not about(keeping)[-1]["stopped"], "it was made once, and whole"
    assert visitor.errors == []
    wait_until(lambda: not keeping.leftovers(), "temporary files are gone")


def test_a_reload_after_the_end_shows_the_finished_video(keeping: Server, visit: Visit, short_speech: Path):
    visitor = visit(keeping.url)
    visitor.choose(speech=short_speech)
    visitor.generate()
    visitor.wait_state("done")
    visitor.page.reload()
    visitor.wait_state("done")
    visitor.page.wait_for_function("document.querySelector('#final video')?.duration > 1.5")
    assert_chosen(visitor, short_speech)
    assert visitor.page.is_visible("#download")
    visitor.generate()  # all inputs are there for another run
    visitor.page.wait_for_function(PLAYING)
    visitor.wait_state("done")
    assert visitor.errors == []


@pytest.mark.slow
def test_the_network_goes_for_a_while(keeping: Server, visit: Visit, long_speech: Path):
    before = len(keeping.videos())
    visitor = visit(keeping.url)
    with slowed(keeping, 1 / 25):
        begin(visitor, long_speech)
        visitor.context.set_offline(True)
        visitor.page.wait_for_timeout(1000 * OFFLINE_S)
        assert len(keeping.videos()) == before, "it goes on meanwhile"
        with visitor.page.expect_event("load"):  # the page comes back by itself
            visitor.context.set_offline(False)
        assert_plays_on(visitor, long_speech)
        visitor.page.click("#stop:enabled")
        visitor.wait_state("stopped")
    assert len(keeping.videos()) == before + 1


@pytest.mark.slow
def test_a_second_tab_sees_the_same_run_and_a_stranger_none(keeping: Server, visit: Visit, half_minute: Path):
    visitor, stranger = visit(keeping.url), visit(keeping.url)
    with slowed(keeping):
        begin(visitor, half_minute)
        second = visitor.context.new_page()
        second.goto(keeping.url)
        assert_plays_on(Visitor(second, visitor.context, []), half_minute)
        stranger.page.reload()
        stranger.page.wait_for_selector("#gauges .gauge")
        stranger.page.wait_for_timeout(2000)
        stranger.wait_state("idle")
        assert stranger.page.is_disabled("#stop")
        assert stranger.page.locator("#portrait img").count() == 0
        second.click("#stop:enabled")
        visitor.wait_state("stopped")
    Visitor(second, visitor.context, []).wait_state("stopped")
    assert visitor.page.is_enabled("#generate")


@pytest.mark.slow
def test_a_closed_tab_leaves_its_run_to_the_end(keeping: Server, visit: Visit, half_minute: Path):
    before = keeping.videos()
    visitor = visit(keeping.url)
    with slowed(keeping):
        begin(visitor, half_minute)
        visitor.page.close()
    wait_until(lambda: len(keeping.videos()) == len(before) + 1, "it is made", 300)
    [video] = [path for path in keeping.videos() if path not in before]
    assert not json.loads((video.parent / "about.json").read_text())["stopped"]
    wait_until(lambda: not keeping.leftovers(), "temporary files are gone")
    page = visitor.context.new_page()
    page.goto(keeping.url)
    Visitor(page, visitor.context, []).wait_state("done")


@pytest.mark.slow
def test_on_a_phone_a_reload_goes_on(keeping: Server, visit: Visit, half_minute: Path):
    visitor = visit(keeping.url, viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    with slowed(keeping):
        begin(visitor, half_minute)
        visitor.page.reload()
        assert_plays_on(visitor, half_minute)
        assert visitor.page.evaluate("document.documentElement.scrollWidth") <= 390
        expect(visitor.page.locator("#stop")).to_be_in_viewport()
        visitor.page.click("#stop:enabled")
        visitor.wait_state("stopped")
