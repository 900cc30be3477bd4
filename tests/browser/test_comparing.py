"""Compare on the page: two videos made for it play in step above their table, for their owner only."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from visiting import ROOT, Server, Visitor
from wire import Wire

Visit = Callable[..., Visitor]
SENTENCE = ROOT / "tests/data/speech/01_flite.flac"  # 2.8 s

MEASURED = "#compare-table:has(th:text('confidence')):has(p)"
PLACES = "[...document.querySelectorAll('#compare .compared video')].map((one) => one.currentTime)"
SOUNDS = "[...document.querySelectorAll('#compare .compared video')].map((one) => one.muted)"
TOGETHER = f"(() => {{ const [a, b] = {PLACES}; return a > 0.4 && Math.abs(a - b) < 0.085; }})()"


def open_section(visitor: Visitor) -> None:
    visitor.page.click("#compare > button")
    visitor.page.wait_for_selector("#compare-go")


def fill(visitor: Visitor, side: str, value: str) -> None:
    field = f"#compare-value-{side} input"
    visitor.page.fill(field, value)
    visitor.page.press(field, "Enter")


@pytest.mark.slow
def test_two_made_videos_play_in_step_for_their_owner(private: Server, visit: Visit):
    before, alice = private.videos(), visit(private.url)
    page = alice.page
    alice.choose(speech=SENTENCE)
    open_section(alice)
    page.click("#compare-ways button[role=tab]:nth-child(2)")
    page.wait_for_function("document.querySelector('#compare-value-a input')?.value === '256*256'")
    fill(alice, "a", "192*192")
    fill(alice, "b", "128*128")
    page.click("#compare-make")
    page.wait_for_selector(MEASURED, timeout=240_000)
    table = page.inner_text("#compare-table")
    for words in ("A · Size 192*192", "B · Size 128*128", "average fps", "first frame, s"):
        assert words in table
    made = [video for video in private.videos() if video not in before]
    assert len(made) == 2

    assert page.evaluate(PLACES) == [0, 0], "nothing plays by itself"
    page.click("#compare [data-step=play]")
    page.wait_for_function(TOGETHER, polling=50)
    page.click("#compare [data-step=play]")
    page.wait_for_function(
        f"new Set({PLACES}).size === 1 && document.querySelector('.compared video').paused"
    )
    page.locator("#compare [data-step=place]").fill("0.5")
    page.wait_for_function(f"{PLACES}.every((at) => at > 1.2 && at < 1.6) && new Set({PLACES}).size === 1")
    assert page.evaluate(SOUNDS) == [False, True]
    page.keyboard.press("2")
    assert page.evaluate(SOUNDS) == [True, False]
    page.keyboard.press("Space")
    page.wait_for_function("![...document.querySelectorAll('.compared video')].some((one) => one.paused)")
    assert alice.errors == []

    page.click("#compare-ways button[role=tab]:nth-child(1)")
    page.evaluate("document.querySelector('#compare-table table').id = 'earlier'")
    page.click("#compare-go")
    page.wait_for_selector(MEASURED.replace(":has(p)", ":not(:has(#earlier)):has(p)"))
    assert page.inner_text("#compare-table") == table, "measured once, told twice"

    bob = visit(private.url)
    open_section(bob)
    bob.page.click("#compare-go")
    assert "Choose two videos" in bob.toast()
    ids = [video.parent.name for video in made]
    wire = Wire(private.url, "bob-by-hand")
    for pair in (ids, ids[::-1], [ids[0], ids[0]], [[ids], {}], [f"../{ids[0]}", ids[1]]):
        answer = json.dumps(wire.call(wire.handler("compare-go", "click"), [*pair, None]))
        assert "<video" not in answer, pair
        assert "key=" not in answer
        assert str(private.outputs) not in answer
        assert "administrator this code" not in answer
    assert "no longer here" in json.dumps(wire.call(wire.handler("compare-go", "click"), [*ids, None]))
    assert "Traceback" not in private.log.read_text()


def test_the_section_fits_a_phone_in_chinese(private: Server, visit: Visit):
    visitor = visit(private.url, viewport={"width": 390, "height": 844}, locale="zh-CN")
    open_section(visitor)
    assert "两个已完成的视频" in visitor.page.inner_text("#compare")
    assert visitor.page.evaluate("document.documentElement.scrollWidth") <= 390
    visitor.page.click("#compare-go")
    assert "请选择两个视频" in visitor.toast()
