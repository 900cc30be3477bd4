"""A text on the page: its voice, what it sounds like, and the video of it."""

from __future__ import annotations

from collections.abc import Callable

import av
from playwright.sync_api import Page, expect
from visiting import PORTRAIT, Server, Visitor, wait_until

Visit = Callable[..., Visitor]
TEXT = "Hello there, this is a test of about five seconds. It should work very well indeed."


def choose_type(page: Page) -> None:
    page.get_by_role("tab", name="Type").or_(page.get_by_role("tab", name="输入文字")).click()
    page.wait_for_selector("#text textarea")
    page.wait_for_selector("#speech", state="hidden")
    page.wait_for_selector("#speech-several", state="hidden")


def test_a_text_is_heard_and_then_animated(server: Server, visit: Visit):
    visitor = visit(server.url)
    page, before = visitor.page, server.videos()
    page.set_input_files("#portrait input[type=file]", PORTRAIT)
    page.wait_for_selector("#portrait img")
    choose_type(page)
    page.locator("#text textarea").fill(TEXT)
    page.click("#speak")
    visitor.wait_speech()
    visitor.generate()
    page.wait_for_function("document.querySelector('#live video')?.currentTime > 0.2")
    visitor.wait_state("done")
    [kept] = [path for path in server.videos() if path not in before]
    with av.open(str(kept)) as movie:
        frames = sum(1 for _ in movie.decode(video=0))
    with av.open(str(kept)) as movie:
        sound_s = sum(frame.samples / frame.sample_rate for frame in movie.decode(audio=0))
    assert abs(frames / 25 - sound_s) < 0.1
    assert "this is a test" in kept.with_suffix(".vtt").read_text(encoding="utf-8").replace("\n", " ")
    with page.expect_download() as download:
        page.locator(".video-buttons a", has_text="Captions").first.click()
    assert download.value.path().read_bytes() == kept.with_suffix(".srt").read_bytes()
    expect(page.locator("#gallery")).to_contain_text("“Hello there, this is a test of")
    visitor.show_finished()
    duration = page.evaluate("document.querySelector('#final video').duration")
    assert 3.5 < duration < 8
    assert visitor.errors == []


def test_generate_speaks_a_text_that_nobody_heard(server: Server, visit: Visit):
    visitor = visit(server.url)
    page, before = visitor.page, server.videos()
    page.set_input_files("#portrait input[type=file]", PORTRAIT)
    page.wait_for_selector("#portrait img")
    choose_type(page)
    page.locator("#text textarea").fill("Short.")
    visitor.generate()
    visitor.wait_state("done")
    assert len(server.videos()) == len(before) + 1
    page.locator("#speech audio, #speech .waveform-container").first.wait_for(state="attached")


def test_a_voice_can_be_heard_before_there_is_a_text(server: Server, visit: Visit):
    page = visit(server.url).page
    choose_type(page)
    page.click("#voice-sample")
    page.wait_for_selector("#sample-sound audio, #sample-sound .waveform-container", state="attached")
    expect(page.locator("#voice input")).to_have_value("Heart · American woman")


def test_no_text_and_foreign_letters_are_reported(server: Server, visit: Visit):
    visitor = visit(server.url)
    page = visitor.page
    choose_type(page)
    page.click("#speak")
    assert "Type the text to speak first." in visitor.toast()
    page.locator("#text textarea").fill("你好，世界。")
    page.click("#speak")
    page.wait_for_selector("text=does not read Han")


def test_the_other_tabs_upload_and_record(server: Server, visit: Visit):
    visitor = visit(server.url)
    page = visitor.page
    assert page.is_visible("#speech-video")
    page.get_by_role("tab", name="Record").click()
    page.wait_for_selector("#speech .record-button, #speech button:has-text('Record')")
    assert not page.is_visible("#speech-video")
    choose_type(page)
    page.get_by_role("tab", name="Upload").click()
    visitor.choose()
    choose_after = page.get_by_role("tab", name="Type")
    choose_after.click()
    wait_until(lambda: page.is_visible("#speech"), "what is there stays to be heard")


def test_an_example_leaves_the_tab(server: Server, visit: Visit):
    visitor = visit(server.url)
    page = visitor.page
    choose_type(page)
    page.locator("#text textarea").fill("Not this.")
    page.locator(".example").first.click()
    visitor.wait_state("running")
    expect(page.get_by_role("tab", name="Upload")).to_have_attribute("aria-selected", "true")
    page.click("#stop:enabled")
    visitor.wait_state("stopped", "done")
    expect(page.locator("#gallery")).not_to_contain_text("Not this.")


def test_the_tab_fits_and_speaks_chinese(server: Server, visit: Visit):
    page = visit(server.url, locale="zh-CN", viewport={"width": 390, "height": 900}).page
    choose_type(page)
    for words in ("上传", "录音", "输入文字", "要说的话", "声音", "字幕", "语速", "试听声音", "试听全文"):
        assert page.locator("#inputs").get_by_text(words, exact=True).first.is_visible(), words
    expect(page.locator("#voice input")).to_have_value("Heart · 美式英语女声")
    for width in (390, 1440):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for name in ("#text", "#voice", "#captions", "#voice-speed", "#speak"):
            box = page.locator(name).bounding_box()
            assert box is not None
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width
