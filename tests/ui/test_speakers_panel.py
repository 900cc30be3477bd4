"""The section of several speakers: what it shows, what it asks of a run, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from engines import ScriptedEngine
from pages import Page, gather, request_of
from PIL import Image

from avatar.errors import BadInput
from avatar.hardware.inventory import Inventory
from avatar.settings import FORM
from avatar.ui import payloads
from avatar.ui.presets.preset_panel import PresetPanel
from avatar.ui.speakers.speakers_panel import MOST_SPEAKERS
from avatar.ui.state.machine_presets import flat
from avatar.ui.state.uploads import NotUploaded, Uploads

BOX = {"left": 0.1, "top": 0.2, "right": 0.3, "bottom": 0.6}
Given = tuple[Any, ...]


def seen(count: int) -> dict[str, Any]:
    """The portrait's panel with so many faces."""
    return {"for": "us.png", "engine": "preview", "faces": [{"box": BOX}] * count, "face": 0}


def given(
    way: str,
    *audios: Any,
    turns: Any = None,
    faces: tuple[int, ...] = (1, 2, 3, 4),
    boxes: dict[str, Any] | None = None,
    place: str = "boxes",
    painted: Path | None = None,
) -> Given:
    """The section's values."""
    areas = None if boxes is None else {"boxes": boxes}
    return (way, turns, place, areas, painted, *faces, *(*audios, *[None] * MOST_SPEAKERS)[:MOST_SPEAKERS])


@pytest.fixture
def page(tmp_path: Path) -> Page:
    return Page(tmp_path, ScriptedEngine())


def test_one_face_speaks_unless_another_way_is_chosen(page: Page) -> None:
    panel = page.generate.speakers
    assert panel.asked(seen(3), (), True, "en") is None
    assert panel.asked(seen(3), given("one", "a.wav"), True, "en") is None
    assert panel.asked(seen(1), given("own", "a.wav"), True, "en") is None
    assert panel.asked(None, given("own", "a.wav"), True, "en") is None


def test_each_row_is_a_face_and_the_silent_listen(page: Page) -> None:
    asked = page.generate.speakers.asked(
        seen(3), given("own", "a.wav", None, "b.wav", faces=(3, 2, 1, 4)), True, "en"
    )
    assert [(one.face, one.audio) for one in asked.speakers] == [
        ("3", Path("a.wav")),
        ("1", Path("b.wav")),
        ("2", None),
    ]


@pytest.mark.parametrize(("way", "num_faces"), [("stereo", 2), ("turns", 3)])
def test_one_recording_is_split_by_rows(way: str, num_faces: int, page: Page, tmp_path: Path) -> None:
    turns = tmp_path / "turns.txt"
    turns.write_text("0 1 Anna\n1 2 Ben\n2 3 Cleo\n")
    values = given(way, turns=str(turns), faces=(2, 1, 3, 4), boxes={"1": [0, 0, 0.5, 1]})
    asked = page.generate.speakers.asked(seen(3), values, True, "en")
    labels = ["left", "right"] if way == "stereo" else ["Anna", "Ben", "Cleo"]
    assert [(one.face, one.label) for one in asked.speakers] == list(zip("213"[:num_faces], labels))
    assert asked.speakers[1].mask == (0, 0, 0.5, 1)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (given("own"), "No speaker has a recording"),
        (given("turns"), "Upload the list that says who speaks when"),
        (given("own", "a.wav", boxes={"1": [0, 0, 9, 9]}), "mask is"),
        (given("own", "a.wav", boxes={"1": "'; drop"}), "mask is"),
    ],
)
def test_what_is_missing_is_named(values: Given, words: str, page: Page) -> None:
    with pytest.raises(BadInput, match=words):
        page.generate.speakers.asked(seen(2), values, True, "en")


def test_rows_appear_as_they_are_needed(page: Page) -> None:
    panel, request = page.generate.speakers, request_of("v")
    presets = PresetPanel(panel.parts, page.app_state)
    values = [flat(page.app_state.machine.resolved("auto"))[name] for name in FORM]
    more = ("boxes", None, "auto", None, *values)  # where voices act, the portrait, its shape

    def rows(way: str, count: int) -> list[bool]:
        updates = panel.way_changed(presets)(request, seen(count), way, *more)
        return [updates[f"row_{n}"]["visible"] for n in range(1, 5)]

    assert rows("one", 3) == [False] * 4
    assert rows("own", 3) == [True, True, True, False]
    assert rows("stereo", 3) == [True, True, False, False]
    assert rows("turns", 9) == [True] * 4
    shown = panel.faces_changed(presets)(request, seen(5), "own", *more)
    assert shown["section"]["visible"] is True
    assert [value for _, value in shown["face_2"]["choices"]] == [1, 2, 3, 4, 5]
    assert shown["areas"]["value"]["faces"] == [BOX] * 5
    hidden = panel.faces_changed(presets)(request, seen(1), "own", *more)
    assert (hidden["section"]["visible"], hidden["way"]) == (False, "one")
    assert hidden["audio_1"]["value"] is None
    assert (shown["num_speakers"], hidden["num_speakers"]) == (4, 1)


@pytest.fixture
def two(tmp_path: Path) -> dict[str, Path]:
    """A portrait of two people, and a recording for each."""
    portraits = Path(__file__).parents[2] / "assets" / "portraits"
    faces = [Image.open(portraits / name).convert("RGB") for name in ("astronaut.jpg", "mara.png")]
    pair = np.concatenate([np.asarray(face.resize((256, 256))) for face in faces], axis=1)
    Image.fromarray(pair).save(tmp_path / "us.png")
    for name, step in (("a", 0.03), ("b", 0.04)):
        sound = np.sin(np.arange(48_000) * step).astype(np.float32) * 0.3
        soundfile.write(tmp_path / f"{name}.wav", sound, 48_000)
    return {"portrait": tmp_path / "us.png", "a": tmp_path / "a.wav", "b": tmp_path / "b.wav"}


def test_generate_hands_each_voice_to_the_engine(page: Page, two: dict[str, Path]) -> None:
    speakers = given("own", str(two["b"]), str(two["a"]), faces=(2, 1, 3, 4))
    gather(page.press(two["portrait"], seen(2), speech=None, speakers=speakers), [])
    (request,) = page.engine.requests
    assert [(one.name, one.face[0] > 0.5) for one in request.speakers] == [("b.wav", True), ("a.wav", False)]
    assert (request.face, request.speech_name) == (None, "b.wav + a.wav")
    assert [path.name for path in request.voices] == ["voice-1.wav", "voice-2.wav"]


def test_a_text_cannot_be_shared(page: Page, two: dict[str, Path]) -> None:
    typed = ("type", "Hello.", "heart", 1.0, "file", None)
    with pytest.raises(BadInput, match="typed text cannot be split"):
        list(page.press(two["portrait"], seen(2), typed=typed, speakers=given("stereo")))


def test_each_row_paints_with_its_own_brush(page: Page) -> None:
    values = given("own", None, "b.wav", faces=(2, 1, 3, 4), place="painted", painted=Path("p.png"))
    asked = page.generate.speakers.asked(seen(2), values, True, "en")
    assert [(one.face, one.painted, one.brush) for one in asked.speakers] == [
        ("1", Path("p.png"), 1),
        ("2", Path("p.png"), 0),
    ]
    values = given("own", "a.wav", place="painted")
    with pytest.raises(BadInput, match="Nothing is painted"):
        page.generate.speakers.asked(seen(2), values, True, "en")
    values = given("own", "a.wav", place="around", painted=Path("p.png"), boxes={"1": [0, 0, 0.5, 1]})
    asked = page.generate.speakers.asked(seen(2), values, True, "en")
    assert not any(one.has_mask for one in asked.speakers)


def test_the_editor_shows_the_portrait_and_whose_colour(page: Page, two: dict[str, Path]) -> None:
    panel, request = page.generate.speakers, request_of("v")
    shown = panel.place_changed(request, seen(2), "own", "painted", str(two["portrait"]))
    assert shown["masks"]["value"]["background"].size == (512, 256)
    assert shown["legend"]["value"].count("<li>") == 2
    assert shown["areas"]["value"] is None
    for way, place in (("one", "painted"), ("own", "around"), ("own", "boxes")):
        hidden = panel.place_changed(request, seen(2), way, place, str(two["portrait"]))
        assert (hidden["masks"]["value"], hidden["masks"]["visible"]) == (None, False)
    assert hidden["areas"]["value"]["faces"] == [BOX] * 2


@pytest.mark.parametrize("count", [0, 5, 1.5, "2", True])
def test_wrong_numbers_of_speakers_are_refused(count: Any) -> None:
    with pytest.raises(BadInput, match=r"num_speakers is .* a whole number from 1 to 4"):
        payloads.num_speakers(count)
    assert payloads.num_speakers(None) == 1


def test_the_plan_counts_the_speakers(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = page.app_state.machine
    card = Inventory.imagine(1, 80)
    monkeypatch.setattr(machine, "inventory", lambda: card)
    preset = machine.preset("80gb")
    peaks = [machine.plan(preset, count)[0].peak_bytes(0) for count in (1, 3)]
    assert peaks[1] > peaks[0]
    presets = PresetPanel(page.generate.parts, page.app_state)
    values = [flat(preset)[name] for name in FORM]
    one, three = (presets.speakers_changed("en", "80gb", None, count, values) for count in (1, 3))
    assert one["plan"] != three["plan"]
    assert (one["num_speakers"], three["num_speakers"]) == (1, 3)


def test_speakers_of_programs_are_uploads_alone(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path / "uploads")
    arrived = uploads.stage() / "a.wav"
    arrived.write_bytes(b"x")
    placed = uploads.place(arrived, "a.wav")
    (one,) = payloads.speakers([{"face": 2, "audio": {"path": str(placed)}}], uploads.find)
    assert (one.face, one.audio) == ("2", placed.resolve())
    assert payloads.speakers({}, uploads.find) == payloads.speakers(None, uploads.find) == []
    for audio in ("/etc/passwd", {"path": "/etc/passwd"}, {"path": None}, [str(placed)], 5):
        with pytest.raises(NotUploaded):
            payloads.speakers([{"face": 1, "audio": audio}], uploads.find)
    for value in ("[]", [1], {"face": 1}):
        with pytest.raises(BadInput, match="speakers are not a JSON list"):
            payloads.speakers(value, uploads.find)
    assert payloads.split("stereo", None) == "stereo"
    assert payloads.split("", "/uploads/turns.txt") == "/uploads/turns.txt"
    for word in ("/etc/passwd", "mono", 5):
        with pytest.raises(BadInput, match="split is"):
            payloads.split(word, None)
