"""What goes in: bad files, faces that are not found, examples."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pillow_heif
import pytest
import soundfile
from PIL import Image, ImageDraw
from visiting import PORTRAIT, Server, Visitor, wait_until

Visit = Callable[..., Visitor]
HERE = re.escape(str(Path(__file__).parents[2]))
LEAKS = re.compile(rf"Traceback|File \"|/tmp/|/home/|{HERE}|site-packages|\.py\b")


POINTS = {
    "mouth_left": (0.39, 0.742),
    "mouth_right": (0.61, 0.742),
    "inner_lip_top": (0.5, 0.735),
    "inner_lip_bottom": (0.5, 0.75),
    "outer_lip_top": (0.5, 0.688),
    "outer_lip_bottom": (0.5, 0.797),
    "chin": (0.5, 0.92),
}


@pytest.fixture
def drawing(tmp_path: Path) -> Path:
    """A drawing in which no face is found, though it has a mouth."""
    picture = Image.new("RGB", (640, 640), (236, 226, 200))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((120, 200, 520, 600), fill=(200, 90, 70))
    draw.polygon([(90, 210), (320, 60), (550, 210)], fill=(120, 60, 50))
    draw.rectangle((190, 280, 260, 350), fill=(250, 240, 200))
    draw.rectangle((380, 280, 450, 350), fill=(250, 240, 200))
    draw.ellipse((250, 440, 390, 510), fill=(150, 40, 40))
    draw.line((250, 475, 390, 475), fill=(60, 10, 10), width=3)
    path = tmp_path / "my house.png"
    picture.save(path)
    return path


def test_a_corrupt_portrait_is_reported_at_once(server: Server, visit: Visit, tmp_path: Path):
    page = visit(server.url).page
    for name, content in (
        ("broken.png", b"\x89PNG\r\n\x1a\n" + b"\0" * 64),
        ("text.jpg", b"this is no picture"),
    ):
        (tmp_path / name).write_bytes(content)
        page.set_input_files("#portrait input[type=file]", tmp_path / name)
        toast = page.locator(".toast-body", has_text=name)
        toast.wait_for()
        assert not LEAKS.search(toast.inner_text())


def test_a_corrupt_speech_is_refused(server: Server, visit: Visit, tmp_path: Path):
    bad = tmp_path / "broken.wav"
    bad.write_bytes(b"RIFF\0\0\0\0WAVEfmt " + b"\0" * 40)
    before = server.videos()
    visitor = visit(server.url)
    visitor.page.set_input_files("#portrait input[type=file]", PORTRAIT)
    visitor.page.set_input_files("#speech input[type=file]", bad)
    visitor.page.wait_for_selector("#speech button[aria-label=Clear]")
    visitor.generate()
    toast = visitor.toast()
    assert "broken.wav" in toast
    assert not LEAKS.search(toast)
    assert server.videos() == before
    wait_until(lambda: not server.leftovers(), "nothing is left of a refused run")


def test_nothing_chosen_is_said(server: Server, visit: Visit):
    visitor = visit(server.url)
    visitor.generate()
    assert "Choose a portrait first" in visitor.toast()


def test_points_placed_by_hand_make_a_drawing_talk(
    server: Server, visit: Visit, drawing: Path, short_speech: Path
):
    visitor = visit(server.url)
    page = visitor.page
    page.set_input_files("#portrait input[type=file]", drawing)
    page.wait_for_selector(".handle")
    assert page.locator(".handle").count() == 7
    assert "No face was recognised" in page.inner_text(".points")
    picture = page.locator(".points-picture")
    picture.scroll_into_view_if_needed()
    for name in page.eval_on_selector_all(".handle", "all => all.map(h => h.dataset.point)"):
        box = picture.bounding_box()
        handle = page.locator(f'.handle[data-point="{name}"]')
        grip = handle.bounding_box()
        page.mouse.move(grip["x"] + grip["width"] / 2, grip["y"] + grip["height"] / 2)
        page.mouse.down()
        page.mouse.move(
            box["x"] + POINTS[name][0] * box["width"], box["y"] + POINTS[name][1] * box["height"], steps=4
        )
        page.mouse.up()
    placed = page.evaluate(
        "[...document.querySelectorAll('.handle')].map(h => [h.dataset.point, h.style.left, h.style.top])"
    )
    for name, left, top in placed:
        assert abs(float(left[:-1]) - 100 * POINTS[name][0]) < 1.5
        assert abs(float(top[:-1]) - 100 * POINTS[name][1]) < 1.5
    assert page.is_hidden(".points-bad")
    before = server.videos()
    page.set_input_files("#speech input[type=file]", short_speech)
    visitor.wait_speech()
    visitor.generate()
    visitor.wait_state("done")
    [video] = [path for path in server.videos() if path not in before]
    mouth = POINTS["inner_lip_top"]
    assert motion_near(video, mouth) > 1.0, "the mouth does not move"


def test_a_handle_moves_by_arrow_keys(server: Server, visit: Visit, drawing: Path):
    visitor = visit(server.url)
    page = visitor.page
    page.set_input_files("#portrait input[type=file]", drawing)
    chin = page.locator('.handle[data-point="chin"]')
    chin.focus()
    top = float(chin.evaluate("h => h.style.top").rstrip("%"))
    for _ in range(3):
        page.keyboard.press("Shift+ArrowDown")
    assert float(chin.evaluate("h => h.style.top").rstrip("%")) == pytest.approx(top + 3, abs=0.1)
    for _ in range(45):
        page.keyboard.press("Shift+ArrowUp")
    assert page.is_visible(".points-bad")


def test_head_only_is_a_choice_said_plainly(server: Server, visit: Visit, drawing: Path, short_speech: Path):
    visitor = visit(server.url)
    page = visitor.page
    page.set_input_files("#portrait input[type=file]", drawing)
    page.check(".points-skip input")
    assert page.locator(".handle:disabled").count() == 7
    page.set_input_files("#speech input[type=file]", short_speech)
    visitor.wait_speech()
    visitor.generate()
    visitor.wait_state("done")
    assert "head" in page.inner_text("#notices").lower()


def test_an_example_talks_after_one_press(server: Server, visit: Visit):
    before = server.videos()
    visitor = visit(server.url)
    visitor.page.locator(".example").nth(1).click()
    visitor.wait_state("running")
    visitor.page.wait_for_function("document.querySelector('#live video')?.currentTime > 0.5")
    assert visitor.page.is_hidden(".points-ask")
    visitor.page.click("#stop:enabled")
    visitor.wait_state("stopped", "done")
    assert len(server.videos()) == len(before) + 1
    assert visitor.errors == []


def test_pictures_that_browsers_may_not_show(server: Server, visit: Visit, tmp_path: Path):
    pillow_heif.register_heif_opener()
    page = visit(server.url).page
    for width, suffix in ((96, ".heic"), (128, ".avif"), (160, ".webp")):
        path = tmp_path / f"me{suffix}"
        with Image.open(PORTRAIT) as picture:
            picture.resize((width, width)).save(path)
        page.set_input_files("#portrait input[type=file]", path)
        page.wait_for_function(f"document.querySelector('#portrait img')?.naturalWidth === {width}")
        page.click('#portrait button[aria-label="Remove Image"]')
        page.wait_for_selector("#portrait img", state="detached")
        assert page.locator(".toast-body").count() == 0


def test_the_sound_of_a_video(server: Server, visit: Visit, tmp_path: Path, short_speech: Path):
    video = tmp_path / "clip.mp4"
    write_video(video, short_speech)
    before = server.videos()
    visitor = visit(server.url)
    visitor.page.set_input_files("#portrait input[type=file]", PORTRAIT)
    visitor.page.set_input_files("input[type=file][accept*=video]", video)
    visitor.wait_speech()
    visitor.generate()
    visitor.wait_state("running")
    visitor.wait_state("done", "stopped")
    assert len(server.videos()) == len(before) + 1


def write_video(path: Path, speech: Path) -> None:
    """Grey frames with a sound track."""
    sound, rate = soundfile.read(speech, dtype="float32")
    with av.open(str(path), "w") as file:
        pictures = file.add_stream("h264", rate=25, width=64, height=64, pix_fmt="yuv420p")
        track = file.add_stream("aac", rate=rate, layout="mono")
        for _ in range(round(25 * len(sound) / rate)):
            grey = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 128, np.uint8))
            file.mux(pictures.encode(grey))
        samples = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
        samples.sample_rate = rate
        file.mux(track.encode(samples))
        for stream in (pictures, track):
            file.mux(stream.encode(None))


def motion_near(video: Path, at: tuple[float, float]) -> float:
    """The mean change of brightness over time, around a place given as fractions of the picture."""
    with av.open(str(video)) as opened:
        frames = np.stack([frame.to_ndarray(format="gray") for frame in opened.decode(video=0)]).astype(
            np.float32
        )
    _, height, width = frames.shape
    y, x = round(at[1] * height), round(at[0] * width)
    reach = height // 16
    return float(frames[:, y - reach : y + reach, x - reach : x + reach].std(axis=0).mean())
