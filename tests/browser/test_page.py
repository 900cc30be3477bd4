"""The page itself: language, width, keyboard, memory, presets, gallery."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect
from visiting import Server, Visitor, start_server, wait_until

from avatar.runtime.report import read_report

Visit = Callable[..., Visitor]


def make_video(visitor: Visitor) -> None:
    """Make a short video: an example, stopped once it has begun."""
    visitor.page.locator(".example").first.click()
    visitor.wait_state("running")
    visitor.page.wait_for_function("document.querySelector('#live video')?.currentTime > 0.2")
    visitor.page.click("#stop:enabled")
    visitor.wait_state("stopped", "done")


def test_auto_is_chosen_and_resolves_to_the_preview(plain: Server, visit: Visit):
    page = visit(plain.url).page
    chosen = page.locator('.card[aria-checked="true"]')
    assert chosen.get_attribute("data-id") == "auto"
    assert "Preview on the CPU" in chosen.inner_text()
    other = page.locator('.card[data-id="80gb"]')
    page.click(".presets summary")
    assert "Missing" in other.inner_text()
    assert "GPU" in other.inner_text()


def test_a_preset_fills_the_settings_and_they_survive_a_reload(server: Server, visit: Visit):
    visitor = visit(server.url)
    page = visitor.page
    page.click("#advanced > button")
    page.wait_for_selector("#advanced >> text=Seed")
    assert not page.is_visible("#advanced >> text=Sampling steps")  # the preview has none
    page.click(".presets summary")
    page.click('.card[data-id="4x4090-low-vram"]')
    page.wait_for_selector("#advanced >> text=Sampling steps")
    expect(page.locator('#advanced [aria-label="Size (width*height)"]')).to_have_value("688*368")
    expect(page.locator("#plan")).to_contain_text("cannot run here")
    with page.expect_response(lambda answer: "A warm voice" in (answer.request.post_data or "")):
        page.locator("#prompt textarea").press_sequentially("A warm voice")
    page.wait_for_timeout(500)  # the browser stores the answer, encrypted
    page.reload()
    page.wait_for_selector('.card[data-id="4x4090-low-vram"][aria-checked="true"]', state="attached")
    expect(page.locator("#prompt textarea")).to_have_value("A warm voice")
    page.click('.card[data-id="auto"]')
    page.wait_for_selector("#prompt", state="hidden")


def test_chinese(server: Server, visit: Visit):
    page = visit(server.url, locale="zh-CN", viewport={"width": 1440, "height": 900}).page
    workspace = page.locator("#workspace").bounding_box()
    assert workspace is not None
    assert workspace["width"] > 1150, "the page is as wide as its words"
    for words in ("让肖像开口说话。", "肖像", "语音", "画质预设", "自动", "生成", "作品", "就绪"):
        assert page.locator(f"text={words}").first.is_visible(), words
    page.click("#generate")
    page.wait_for_selector("text=请先选择肖像。")
    title = "getComputedStyle(document.querySelector('.toast-title'), '::before').content"
    assert page.evaluate(title) == '"出错了"'
    page.click(".presets summary")
    page.click('.card[data-id="80gb"]')
    refusal = page.locator("#plan .refusal")
    expect(refusal).to_contain_text("本机无法运行")
    assert not re.search(r"cannot|Preset", refusal.inner_text())


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fits_and_can_be_read(server: Server, visit: Visit, scheme: str):
    page = visit(server.url, viewport={"width": 390, "height": 844}, color_scheme=scheme).page
    for width in (390, 1440):
        page.set_viewport_size({"width": width, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        colours = "(e => [getComputedStyle(e).color, getComputedStyle(document.body).backgroundColor])"
        ink, paper = page.eval_on_selector("#hero h1", colours)
        assert contrast(ink, paper) > 7
        assert (luminance(paper) < 0.1) == (scheme == "dark")


def test_by_keyboard(plain: Server, visit: Visit):
    page = visit(plain.url).page
    page.focus('.card[aria-checked="true"]')
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.dataset.id") == "cpu-preview"
    page.wait_for_selector('.card[data-id="cpu-preview"][aria-checked="true"]')
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
    assert float(outline.rstrip("px")) >= 2
    wanted, reached = {"generate", "example", "preset"}, set()
    page.evaluate("document.activeElement.blur()")
    for _ in range(400):  # other tests' videos in the gallery take tab stops, too
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.dataset.action || ''"))
        if wanted <= reached:
            break
    assert wanted <= reached


def test_nothing_comes_from_elsewhere(server: Server, browser: Browser):
    context = browser.new_context()  # with nothing in its cache
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(server.url)
    page.wait_for_selector("#presets .card")
    context.close()
    foreign = [url for url in asked if not url.startswith((server.url, "data:", "blob:"))]
    ours = [url for url in foreign if "iframe" not in url]  # Gradio's own page loads one script
    assert ours == []


@pytest.mark.parametrize(("width", "locale"), [(390, "en-US"), (1280, "zh-CN")])
def test_the_gallery_tells_how_a_video_was_made(plain: Server, visit: Visit, width: int, locale: str):
    words, pace = ("How it was made", " fps") if locale == "en-US" else ("生成报告", "帧/秒")
    visitor = visit(plain.url, viewport={"width": width, "height": 844}, locale=locale)
    page = visitor.page
    make_video(visitor)
    account = page.locator("#gallery .video .account").first
    expect(account).to_have_text(re.compile(words))
    assert not account.locator("dl").is_visible(), "folded at first"
    account.locator("summary").click()
    expect(account.locator("dl")).to_be_visible()
    reported = account.inner_text()
    for fact in ("cpu-preview", "704×", pace, "GiB"):
        assert fact in reported
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    with page.expect_download() as download:
        account.locator("a").click()
    report = read_report(download.value.path())
    assert report.plan is not None
    assert report.memory is not None
    assert report.memory.host_peak_bytes is not None
    assert report.frames_per_s is not None


@pytest.mark.slow
def test_the_gallery_survives_a_restart(visit: Visit, tmp_path: Path, small_preset: str):
    outputs = tmp_path / "outputs"
    first = start_server(tmp_path / "first", "--preset", small_preset, outputs=outputs)
    try:
        make_video(visit(first.url))
        [video] = first.videos()
    finally:
        first.stop()
    assert not list((tmp_path / "first" / "tmp").glob("live-avatar-*")), "temporary files are gone at the end"
    second = start_server(tmp_path / "second", "--preset", small_preset, outputs=outputs)
    try:
        page = visit(second.url).page
        card = page.locator(".video")
        assert card.count() == 1
        card.locator(".poster").click()
        page.wait_for_function("document.querySelector('.theatre video')?.currentTime > 0")
        page.keyboard.press("Escape")
        page.wait_for_selector(".theatre", state="detached")
        with page.expect_download() as download:
            card.locator(".video-buttons a[download]").click()
        assert Path(download.value.path()).read_bytes() == video.read_bytes()
        card.locator("[data-action=use]").click()
        page.wait_for_selector("text=The settings have been filled in.")
        card.locator("[data-action=delete]").click()
        assert card.count() == 1, "deleting asks first"
        card.locator("[data-action=delete]").click()
        page.wait_for_selector(".video", state="detached")
        wait_until(lambda: not video.exists(), "the file is gone")
    finally:
        second.stop()
        shutil.rmtree(outputs)


def luminance(colour: str) -> float:
    """Relative luminance of "rgb(r, g, b)". Source: WCAG 2.2."""
    channels = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours. Source: WCAG 2.2."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)
