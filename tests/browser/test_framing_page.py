"""Who speaks and what is shown: boxes around faces, points that can be corrected, crops with a preview."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from visiting import PORTRAIT, Server, Visitor, wait_until

from avatar.runtime.report import read_report

sys.path.insert(0, str(Path(__file__).parents[1] / "preview"))
from pictures import bystander, portrait

Visit = Callable[..., Visitor]


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A face on the left, and a larger one on the right."""
    scene = np.full((600, 1100, 3), 90, np.uint8)
    scene[200:456, 60:316] = np.asarray(Image.fromarray(portrait("astronaut")).resize((256, 256)))
    scene[40:552, 500:1012] = portrait("astronaut")
    path = tmp_path / "two.png"
    Image.fromarray(scene).save(path)
    return path


def chosen(page: Any, selector: str) -> list[str]:
    """The checked choices of a group."""
    return page.eval_on_selector_all(
        f'{selector} [aria-checked="true"]', "all => all.map(one => one.dataset.choice)"
    )


def generated(server: Server, visitor: Visitor, speech: Path) -> Path:
    """Generate with the page's inputs; the video."""
    before = server.videos()
    visitor.page.set_input_files("#speech input[type=file]", speech)
    visitor.wait_speech()
    visitor.generate()
    wait_until(lambda: len(server.videos()) > len(before), "the video is kept")
    [video] = [path for path in server.videos() if path not in before]
    return video


def face_of(video: Path) -> float:
    """The speaking face's position, from left to right."""
    left, _, right, _ = read_report(video.with_suffix(".report.json")).face
    return (left + right) / 2


def test_another_face_is_chosen_by_a_click_and_by_the_keyboard(
    server: Server, visit: Visit, two: Path, short_speech: Path
):
    visitor = visit(server.url)
    page = visitor.page
    page.set_input_files("#portrait input[type=file]", two)
    page.wait_for_selector(".faces button")
    assert page.locator(".faces button").count() == 2
    assert "2 faces were found" in page.inner_text(".faces-why")
    assert chosen(page, ".faces") == ["1"]
    assert page.get_by_label("Face 2 of 2").is_visible()
    page.get_by_label("Face 1 of 2").click()
    assert chosen(page, ".faces") == ["0"]
    page.keyboard.press("ArrowRight")
    assert chosen(page, ".faces") == ["1"]
    page.keyboard.press("ArrowLeft")
    assert chosen(page, ".faces") == ["0"]
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Face 1 of 2"
    assert 0.1 < face_of(generated(server, visitor, short_speech)) < 0.3


def test_the_person_in_profile_is_preselected(server: Server, visit: Visit, tmp_path: Path):
    path = tmp_path / "field.png"
    Image.fromarray(bystander()).save(path)
    page = visit(server.url).page
    page.set_input_files("#portrait input[type=file]", path)
    page.wait_for_selector(".faces button")
    assert chosen(page, ".faces") == ["0"]
    assert page.locator(".handle:visible").count() == 7, "a profile is hard to make out"
    page.get_by_label("Face 2 of 2").click()
    page.wait_for_function("document.querySelectorAll('.handle:not([hidden])').length === 0")


def test_points_of_a_sure_face_can_be_corrected(server: Server, visit: Visit, short_speech: Path):
    visitor = visit(server.url)
    page = visitor.page
    page.set_input_files("#portrait input[type=file]", PORTRAIT)
    page.wait_for_selector(".points-edit")
    assert page.locator(".handle:visible").count() == 0
    page.click(".points-edit")
    chin = page.locator('.handle[data-point="chin"]')
    before = chin.evaluate("one => one.style.top")
    chin.focus()
    page.keyboard.press("Shift+ArrowDown")
    assert chin.evaluate("one => one.style.top") != before
    kept = read_report(generated(server, visitor, short_speech).with_suffix(".report.json"))
    assert 100 * kept.face_points["chin"][1] == pytest.approx(float(before[:-1]) + 1, abs=0.05)
    page.click(".points-edit")
    assert chin.evaluate("one => one.style.top") == before


@pytest.mark.slow
def test_the_video_has_the_crop_and_shape_of_the_preview(
    server: Server, visit: Visit, two: Path, short_speech: Path
):
    visitor = visit(server.url)
    page = visitor.page
    page.set_input_files("#portrait input[type=file]", two)
    page.wait_for_selector(".framing canvas")
    assert page.is_hidden(".framing-extend")
    page.click('[data-choice="9:16"]')
    assert page.is_visible(".framing-extend")
    page.click('[data-choice="shoulders"]')
    page.click('[data-choice="1:1"]')
    assert chosen(page, ".framing-framing") == ["shoulders"]
    shape = page.evaluate(
        "(() => { const c = document.querySelector('.framing canvas'); return c.width / c.height })()"
    )
    assert shape == pytest.approx(1, abs=0.02)
    page.wait_for_function(r"/ (\d+)×\1 /.test(document.querySelector('#plan').innerText)")
    with av.open(str(generated(server, visitor, short_speech))) as film:
        stream = film.streams.video[0]
        assert stream.width == stream.height


def test_a_small_face_is_one_click_from_a_crop(server: Server, visit: Visit, tmp_path: Path):
    scene = np.full((1200, 1800, 3), 90, np.uint8)
    scene[500:756, 800:1056] = np.asarray(Image.fromarray(portrait("astronaut")).resize((256, 256)))
    path = tmp_path / "far.png"
    Image.fromarray(scene).save(path)
    page = visit(server.url).page
    page.set_input_files("#portrait input[type=file]", path)
    page.wait_for_selector(".framing-crop")
    assert re.search("hardly see it speak", page.inner_text("#notices"))
    page.click(".framing-crop")
    assert chosen(page, ".framing-framing") == ["shoulders"]
    page.wait_for_function("!/hardly see it speak/.test(document.querySelector('#notices').innerText)")
    assert page.is_hidden(".framing-small")


def test_a_phone_shows_faces_and_crops_whole(server: Server, visit: Visit, two: Path):
    page = visit(server.url, viewport={"width": 390, "height": 844}).page
    page.set_input_files("#portrait input[type=file]", two)
    page.wait_for_selector(".faces button")
    for selector in (".faces button", ".framing [role=radio]:visible", ".framing canvas"):
        for box in [one.bounding_box() for one in page.locator(selector).all()]:
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 390


def test_a_picture_is_put_behind_the_person(server: Server, visit: Visit, short_speech: Path, tmp_path: Path):
    sea = tmp_path / "sea.png"
    Image.new("RGB", (300, 200), (10, 20, 200)).save(sea)
    visitor = visit(server.url)
    page, group = visitor.page, ".framing-background"
    page.set_input_files("#portrait input[type=file]", PORTRAIT)
    page.wait_for_selector(".framing canvas")
    field = f"{group} input[type=color]"
    assert (chosen(page, group), page.is_visible(field)) == (["keep"], False)
    page.click(f'{group} [data-choice="transparent"]')
    assert "WebM" in page.inner_text(".framing-note")
    page.click(f'{group} [data-choice="colour"]')
    assert (chosen(page, group), page.is_visible(".framing-note")) == (["colour"], False)
    assert page.is_visible(field)
    page.set_input_files(f"{group} input[type=file]", sea)
    page.wait_for_selector(f'{group} [data-choice="picture"][aria-checked="true"]')
    with av.open(str(generated(server, visitor, short_speech))) as film:
        corner = next(film.decode(video=0)).to_ndarray(format="rgb24")[:30, :30].mean((0, 1))
    assert corner == pytest.approx((10, 20, 200), abs=6)
