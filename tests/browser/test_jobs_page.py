"""The jobs panel in a browser: five dropped recordings, their order, resuming, notifications, on a phone."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import soundfile
from playwright.sync_api import Page, expect
from visiting import PORTRAIT, SPEECH, Server, Visitor, slowed, wait_until

Visit = Callable[..., Visitor]
DROP = """([files, type]) => {
  const taken = new DataTransfer();
  for (const [name, data] of files)
    taken.items.add(new File([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], name, { type }));
  const onto = document.querySelector("#speech button");
  for (const name of ["dragenter", "dragover", "drop"])
    onto.dispatchEvent(new DragEvent(name, { dataTransfer: taken, bubbles: true, cancelable: true }));
}"""
RECORDER = """
window.told = [];
window.Notification = class {
  static permission = "default";
  static async requestPermission() { return this.permission = "granted"; }
  constructor(title, options) { window.told.push([title, options.body]); }
  close() {}
};
Object.defineProperty(document, "hidden", { get: () => true });
"""


@pytest.fixture(scope="module")
def takes(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Five recordings, the first of which takes longer."""
    sound, rate = soundfile.read(SPEECH)
    folder, made = tmp_path_factory.mktemp("takes"), []
    for number, seconds in enumerate((8, 1, 1, 1, 1)):
        made.append(folder / f"take {number}.wav")
        soundfile.write(made[-1], sound[: seconds * rate], rate)
    return made


def choose_portrait(page: Page) -> None:
    page.set_input_files("#portrait input[type=file]", PORTRAIT)
    page.wait_for_selector("#portrait img")


def queue_files(page: Page, files: list[Path]) -> None:
    page.set_input_files("#inputs input[type=file][multiple]", files)


def waiting(page: Page) -> list[str]:
    return page.locator('.job[data-state="waiting"] strong').all_inner_texts()


def in_queue(page: Page, *numbers: int) -> None:
    """Wait until these takes are waiting in the queue, in this order."""
    expect(page.locator('.job[data-state="waiting"] strong')).to_have_text(
        [f"astronaut · take {number}" for number in numbers]
    )


STOP_LAST = """state => {
    const last = [...document.querySelectorAll(`.job[data-state=${state}] [data-action=stop]`)].at(-1)
    last?.click()
    return last?.dataset.id
}"""


def clear(page: Page) -> None:
    """Take everything out of the queue, and stop the running job, unless it ends by itself meanwhile."""
    for state in ("waiting", "running"):
        while id := page.evaluate(STOP_LAST, state):
            page.wait_for_selector(
                f'.job[data-id="{id}"]:is([data-state=running], [data-state=waiting])', state="detached"
            )


def drag_to_the_front(page: Page, number: int) -> None:
    """As a hand does: again, if the page moved under the pointer before it had hold of the row."""
    rows = page.locator('.job[data-state="waiting"]')
    moved = rows.filter(has_text=f"take {number}")
    for _ in range(3):
        moved.drag_to(rows.first, target_position={"x": 60, "y": 3})
        with suppress(AssertionError):
            expect(rows.first).to_contain_text(f"take {number}", timeout=5000)
            return


@pytest.mark.slow
def test_five_dropped_recordings_become_five_videos(plain: Server, visit: Visit, takes: list[Path]):
    before = len(plain.videos())
    visitor = visit(plain.url)
    page = visitor.page
    choose_portrait(page)
    files = [[path.name, base64.b64encode(path.read_bytes()).decode()] for path in takes]
    with slowed(plain):
        page.evaluate(DROP, [files, "audio/wav"])
        expect(page.locator(".job")).to_have_count(5)
        in_queue(page, 1, 2, 3, 4)
        visitor.wait_state("running")
    page.wait_for_function("document.querySelector('#live video')?.currentTime > 0.2")
    expect(page.locator('.job[data-state="done"]')).to_have_count(5, timeout=240_000)
    assert len(plain.videos()) == before + 5
    links = page.locator(".job a[download]")
    names = {links.nth(at).get_attribute("download") for at in range(5)}
    assert names == {f"astronaut-take {number}.mp4" for number in range(5)}
    with page.expect_download() as download:
        links.first.click()
    assert download.value.suggested_filename in names
    page.locator(".job [data-action=play]").first.click()
    page.wait_for_function("document.querySelector('.theatre video')?.currentTime > 0")
    page.keyboard.press("Escape")
    page.locator(".job [data-action=dismiss]").first.click()
    expect(page.locator(".job")).to_have_count(4)
    assert visitor.errors == []
    wait_until(lambda: not plain.leftovers(), "temporary files are gone")


@pytest.mark.slow
def test_the_queue_is_reordered_by_keyboard_and_by_dragging(plain: Server, visit: Visit, takes: list[Path]):
    visitor = visit(plain.url)
    page = visitor.page
    choose_portrait(page)
    with slowed(plain):
        queue_files(page, takes)
        in_queue(page, 1, 2, 3, 4)
        page.get_by_role("button", name="Move up: astronaut · take 4").focus()
        page.keyboard.press("Enter")
        in_queue(page, 1, 2, 4, 3)
        focused = page.evaluate("[document.activeElement.dataset.action, document.activeElement.ariaLabel]")
        assert focused == ["up", "Move up: astronaut · take 4"], "the keyboard stays with its job"
        page.keyboard.press("Enter")
        in_queue(page, 1, 4, 2, 3)
        page.get_by_role("button", name="Move down: astronaut · take 1").click()
        in_queue(page, 4, 1, 2, 3)
        drag_to_the_front(page, 3)
        in_queue(page, 3, 4, 1, 2)
        page.reload()
        in_queue(page, 3, 4, 1, 2)
        clear(page)
    assert waiting(page) == []


@pytest.mark.slow
def test_a_stopped_job_is_resumed_from_the_panel(plain: Server, visit: Visit, takes: list[Path]):
    visitor = visit(plain.url)
    page = visitor.page
    visitor.choose(speech=takes[0])
    with slowed(plain):
        visitor.generate()
        page.wait_for_function("document.querySelector('#live video')?.currentTime > 0.2")
        page.click('.job[data-state="running"] [data-action=stop]')
        visitor.wait_state("stopped")
    with slowed(plain):
        page.click('.job[data-state="stopped"] [data-action=resume]')
        visitor.wait_state("running")
        expect(page.locator('.job[data-state="running"]')).to_have_count(1)
    page.wait_for_function("document.querySelector('#live video')?.currentTime > 0.2")
    expect(page.locator('.job[data-state="done"]')).to_have_count(1, timeout=120_000)
    expect(page.locator(".job")).to_have_count(1)


def test_two_visitors_never_see_each_others_jobs(plain: Server, visit: Visit, takes: list[Path]):
    one, other = visit(plain.url), visit(plain.url)
    with slowed(plain):
        for visitor, files in ((one, takes[:3]), (other, takes[3:])):
            choose_portrait(visitor.page)
            queue_files(visitor.page, files)
            expect(visitor.page.locator(".job")).to_have_count(len(files))
        one.page.reload()
        other.page.reload()
        expect(one.page.locator(".job")).to_have_count(3)
        expect(other.page.locator(".job")).to_have_count(2)
        assert not re.search(r"take [34]", one.page.inner_text("#jobs"))
        assert not re.search(r"take [012]", other.page.inner_text("#jobs"))
        clear(other.page)
        clear(one.page)


def test_a_hidden_page_notifies_when_it_was_asked_to(plain: Server, visit: Visit, takes: list[Path]):
    visitor = visit(plain.url)
    page = visitor.page
    page.evaluate(f"() => {{ {RECORDER} }}")
    choose_portrait(page)
    queue_files(page, takes[1:2])
    expect(page.locator('.job[data-state="done"]')).to_have_count(1)
    assert page.evaluate("window.told") == [], "nobody asked"
    bell = page.locator(".jobs-notify")
    bell.click()
    expect(bell).to_have_attribute("aria-pressed", "true")
    queue_files(page, takes[2:3])
    expect(page.locator('.job[data-state="done"]')).to_have_count(2)
    assert page.evaluate("window.told") == [["Your video is ready", "astronaut · take 2"]]
    bell.click()
    queue_files(page, takes[3:4])
    expect(page.locator('.job[data-state="done"]')).to_have_count(3)
    assert len(page.evaluate("window.told")) == 1, "it was asked to be quiet"


@pytest.mark.slow
@pytest.mark.parametrize(("width", "locale"), [(390, "en-US"), (390, "zh-CN"), (1440, "zh-CN")])
def test_the_panel_fits_and_speaks_chinese(
    plain: Server, visit: Visit, takes: list[Path], width: int, locale: str
):
    page = visit(plain.url, viewport={"width": width, "height": 844}, locale=locale).page
    choose_portrait(page)
    with slowed(plain):
        queue_files(page, takes[:3])
        expect(page.locator(".job")).to_have_count(3)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        words = (
            ("任务", "移除", "下一个就是您。") if locale == "zh-CN" else ("Jobs", "Remove", "You are next.")
        )
        for word in words:
            expect(page.locator("#jobs")).to_contain_text(word)
        boxes = "all.map(one => one.getBoundingClientRect())"
        sizes = f"all => {boxes}.map(box => [box.left, box.right, box.width, box.height])"
        buttons = page.locator(".job-buttons > *").evaluate_all(sizes)  # in one call: the panel is redrawn
        assert buttons
        assert all(0 <= left <= right <= width for left, right, *_ in buttons)
        assert width > 390 or min(min(button[2:]) for button in buttons) >= 38, "for a thumb"
        clear(page)
