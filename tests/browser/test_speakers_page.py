"""Several speakers, as visitors and programs ask for them: a recording for each face, or one split."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from gradio_client import Client, exceptions, handle_file
from PIL import Image
from playwright.sync_api import Page
from visiting import PORTRAIT, Server, Visitor, start_server, wait_until

from avatar.media.brushes import of_brush
from avatar.runtime.report import RunReport, read_report

Visit = Callable[..., Visitor]
PORTRAITS = PORTRAIT.parent


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """us.png with two faces; a.wav and b.wav for them; talk.wav with both, in stereo; turns.txt for it."""
    folder = tmp_path_factory.mktemp("given")
    faces = [Image.open(PORTRAITS / name).convert("RGB") for name in ("astronaut.jpg", "mara.png")]
    pair = np.concatenate([np.asarray(face.resize((384, 384))) for face in faces], axis=1)
    Image.fromarray(pair).save(folder / "us.png")
    t = np.arange(2 * 16_000) / 16_000
    voices = [
        0.4 * np.sign(np.sin(2 * np.pi * hz * t)) * (np.sin(2 * np.pi * 3 * t) > 0) for hz in (120, 170)
    ]
    for name, voice in zip("ab", voices):
        soundfile.write(folder / f"{name}.wav", voice, 16_000)
    soundfile.write(folder / "talk.wav", np.stack(voices, axis=1), 16_000)
    (folder / "turns.txt").write_text("0 1 Anna\n1 2 Ben\n")
    return folder


@pytest.fixture(scope="module")
def self_testing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the full engine with the self-test's toy weights."""
    folder = tmp_path_factory.mktemp("self-test")
    running = start_server(folder, "--keep-running", "0", "--preset", "self-test")
    yield running
    running.stop()


def opened(visit: Visit, server: Server, given: Path, way: str) -> Visitor:
    """A visitor with the portrait of two who has opened the section and chosen a way."""
    visitor = visit(server.url)
    page = visitor.page
    page.set_input_files("#portrait input[type=file]", given / "us.png")
    page.click("#speakers > button")
    page.get_by_label(way, exact=True).check()
    return visitor


def paint(page: Page, colour: int, across: float) -> None:
    """Draw a short stroke with one of the editor's colours; across: where, a fraction of the canvas."""
    page.click('#speakers-masks button[aria-label="Color"]')
    page.locator("#speakers-masks .swatch button").nth(colour).click()
    canvas = page.locator("#speakers-masks canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] * across, box["y"] + box["height"] * 0.7
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 20, y, steps=6)
    page.mouse.up()


def report_of(server: Server, before: set[Path]) -> RunReport:
    """The report of the only video that was made since."""
    wait_until(lambda: len(server.videos()) > len(before), "the video is kept")
    [video] = [path for path in server.videos() if path not in before]
    return read_report(video.with_suffix(".report.json"))


def test_each_face_speaks_its_own_recording(server: Server, visit: Visit, given: Path):
    before = set(server.videos())
    visitor = opened(visit, server, given, "Each face its own recording")
    page = visitor.page
    page.wait_for_selector("#speaker-2:visible")
    assert not page.locator("#speaker-3").is_visible()
    for n, name in ((1, "b.wav"), (2, "a.wav")):
        page.set_input_files(f"#speaker-audio-{n} input[type=file]", given / name)
        page.wait_for_selector(f"#speaker-audio-{n} .waveform-container", state="attached")
    visitor.generate()
    report = report_of(server, before)
    assert [(one.name, one.face[0] > 0.5) for one in report.speakers] == [
        ("b.wav", False),
        ("a.wav", True),
    ]
    page.wait_for_selector('#notices :text("1: b.wav; 2: a.wav")')
    assert visitor.errors == []


def test_the_left_and_right_channel_are_two_voices(server: Server, visit: Visit, given: Path):
    before = set(server.videos())
    visitor = opened(visit, server, given, "Left and right channel of the speech")
    page = visitor.page
    page.wait_for_selector("#speaker-2:visible")
    assert not page.locator("#speaker-audio-1").is_visible()
    page.set_input_files("#speech input[type=file]", given / "a.wav")
    visitor.wait_speech()
    visitor.generate()
    assert "a.wav is mono: it has no left and right voice" in visitor.toast()
    page.click("#speech button[aria-label=Clear]")
    page.set_input_files("#speech input[type=file]", given / "talk.wav")
    visitor.wait_speech()
    visitor.generate()
    assert [one.name for one in report_of(server, before).speakers] == ["left", "right"]


def test_one_face_has_no_such_section(server: Server, visit: Visit, given: Path):
    visitor = opened(visit, server, given, "Each face its own recording")
    page = visitor.page
    page.click('#portrait button[aria-label="Remove Image"]')
    page.set_input_files("#portrait input[type=file]", PORTRAIT)
    page.wait_for_selector("#speakers", state="hidden")


def test_areas_are_drawn_for_the_full_model(self_testing: Server, visit: Visit, given: Path):
    before = set(self_testing.videos())
    visitor = opened(visit, self_testing, given, "Each face its own recording")
    page = visitor.page
    page.get_by_label("In a box that you draw", exact=True).check()
    page.get_by_role("checkbox", name="Area of face 2").check()
    area = page.locator(".area:visible")
    box = area.bounding_box()
    area.focus()
    for _ in range(3):
        page.keyboard.press("ArrowUp")
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2 - 30, box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()
    assert area.bounding_box()["x"] == pytest.approx(box["x"] - 30, abs=3)
    assert area.bounding_box()["y"] < box["y"]
    for n, name in ((1, "b.wav"), (2, "a.wav")):
        page.set_input_files(f"#speaker-audio-{n} input[type=file]", given / name)
        page.wait_for_selector(f"#speaker-audio-{n} .waveform-container", state="attached")
    visitor.generate()
    first, second = report_of(self_testing, before).speakers
    assert first.mask is None
    picture = page.locator(".areas .points-picture").bounding_box()
    left = (area.bounding_box()["x"] - picture["x"]) / picture["width"]
    assert second.mask[0] == pytest.approx(left, abs=0.01)


def test_areas_are_painted_for_the_full_model(self_testing: Server, visit: Visit, given: Path):
    before = set(self_testing.videos())
    visitor = opened(visit, self_testing, given, "Each face its own recording")
    page = visitor.page
    for n, name in ((1, "a.wav"), (2, "b.wav")):
        page.set_input_files(f"#speaker-audio-{n} input[type=file]", given / name)
        page.wait_for_selector(f"#speaker-audio-{n} .waveform-container", state="attached")
    page.get_by_label("Where you paint", exact=True).check()
    page.wait_for_selector("#speakers-masks canvas")
    page.wait_for_selector('#speakers-masks button[aria-label="Color"]')
    page.wait_for_timeout(1000)  # the editor lays the portrait out
    paint(page, 0, 0.2)
    paint(page, 1, 0.8)
    visitor.generate()
    first, second = report_of(self_testing, before).speakers
    assert (first.name, second.name) == ("a.wav", "b.wav")
    assert first.painted
    assert second.painted
    uploaded = self_testing.scratch.rglob("layer_0.png")  # by the editor, for each event that reads it
    painting = max(uploaded, key=lambda path: path.stat().st_mtime)
    rgba = np.asarray(Image.open(painting).convert("RGBA"))
    left, right = (of_brush(rgba, brush) > 0 for brush in (0, 1))
    middle = rgba.shape[1] // 2
    assert rgba.shape[1] / rgba.shape[0] == pytest.approx(2, abs=0.02), "the portrait's shape"
    assert left.mean() > 0.005 < right.mean()
    assert not left[:, middle:].any()
    assert not right[:, :middle].any()
    assert visitor.errors == []


def test_programs_name_speakers(server: Server, given: Path):
    client = Client(server.url, verbose=False)
    before = set(server.videos())
    asked = {"portrait": handle_file(str(given / "us.png")), "speech": None, "api_name": "/generate"}
    asked |= {"preset": "cpu-preview", "settings": {"size": "384*192"}}
    recordings = [handle_file(str(given / name)) for name in ("a.wav", "b.wav")]
    client.predict(
        **asked, speakers=[{"face": 2, "audio": recordings[0]}, {"face": 1, "audio": recordings[1]}]
    )
    assert [one.name for one in report_of(server, before).speakers] == ["a.wav", "b.wav"]
    before = set(server.videos())
    asked["speech"] = handle_file(str(given / "talk.wav"))
    client.predict(**asked, turns=handle_file(str(given / "turns.txt")))
    assert [one.name for one in report_of(server, before).speakers] == ["Anna", "Ben"]
    before = set(server.videos())
    for more, words in (
        ({"split": "/etc/passwd"}, "split is '/etc/passwd'"),
        ({"speakers": [{"face": 1, "audio": "/etc/passwd"}]}, "not found among the uploads"),
        ({"speakers": [{"face": 1, "audio": {"path": "/etc/passwd"}}]}, "not found among the uploads"),
        ({"speakers": [{"face": 9}], "split": "stereo"}, "no face 9 in us.png: 2 faces"),
        ({"speakers": [{"faces": 1}]}, "unknown key 'faces'. Did you mean 'face'"),
        ({"speakers": [{"face": 1, "audio": recordings[0]}]}, "and a recording for all"),
    ):
        with pytest.raises(exceptions.AppError, match=words):
            client.predict(**asked, **more)
    assert set(server.videos()) == before
