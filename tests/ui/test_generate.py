"""Generate: what the page receives, in which order, with a real job queue and a scripted engine."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
from engines import ScriptedEngine
from pages import PORTRAIT, SPEECH, Page, gather, updates_of
from PIL import Image

from avatar.errors import AvatarError, BadInput, WorkerLost
from avatar.hardware.inventory import Inventory
from avatar.media.limits import InputLimits
from avatar.planning.planner import plan
from avatar.preset import load_preset
from avatar.runtime.gallery import owner_hash
from avatar.speech.narration import Script
from avatar.ui.portrait import framing_panel, point_editor
from avatar.ui.speech.typing_tab import choices
from avatar.ui.state import submission
from avatar.ui.state.examples import Examples
from avatar.ui.state.job_queue import QueueFull
from avatar.ui.state.speech_service import VoicesBusy

ASSETS = Path(__file__).resolve().parents[2] / "assets"


@pytest.fixture
def page(tmp_path: Path):
    made: list[Page] = []

    def make(engine: ScriptedEngine | None = None, **options: Any) -> Page:
        made.append(Page(tmp_path, engine or ScriptedEngine(num_segments=4), **options))
        return made[-1]

    yield make
    for one in made:
        one.engine.go.set()
        one.job_queue.close()


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A picture without a face."""
    path = tmp_path / "plain.png"
    Image.fromarray(np.full((200, 300, 3), 128, np.uint8)).save(path)
    return path


def test_a_whole_run(page):
    p = page()
    updates = list(p.press())
    segments = [path for path in updates_of(updates, "live") if isinstance(path, str)]
    assert [Path(path).name for path in segments] == [f"segment-{i}.mp4" for i in range(4)]
    first = next(i for i, update in enumerate(updates) if isinstance(update.get("live"), str))
    assert isinstance(updates[first + 1].get("live"), str), "the first two go out back to back"
    assert not any(update.get("live", "") is None for update in updates)
    assert updates[0]["generate"]["interactive"] is False
    assert updates[0]["replay"]["visible"] is True, "an earlier video's end hid it"
    last = updates[-1]
    assert last["generate"]["interactive"] is True
    [entry] = p.app_state.gallery.entries(owner_hash("me"))
    shown = Path(last["final"]["value"])
    assert last["download"]["value"] == str(shown)
    assert shown.samefile(entry.video)
    assert shown.is_relative_to(p.app_state.scratch / "uploads"), "the one folder that Gradio serves"
    assert 'data-state="done"' in last["status"]
    assert entry.id in last["gallery"]
    assert entry.about.settings["preset"] == "auto"
    assert "Only the head moves" in updates_of(updates, "notices")[-1]
    assert [left.name for left in p.app_state.scratch.iterdir()] == ["uploads"]
    assert p.app_state.delete(entry.id, "me")
    assert list((p.app_state.scratch / "uploads").iterdir()) == [], "deleted wherever it was shown"


def test_the_gauges_show_the_plan_of_the_run(page, monkeypatch):
    one, shown = page(), []
    monkeypatch.setattr(one.app_state.gauges, "set_plan", shown.append)
    planned = plan(load_preset("80gb"), Inventory.imagine(1, 80))
    monkeypatch.setattr(one.engine, "plan", planned)
    list(one.press())
    assert shown == [planned]


def test_the_gauges_tell_pinned_memory_of_the_engine(page):
    one = page()
    one.engine.pinned_bytes = 123
    assert one.app_state.gauges.pinned() == 0
    list(one.press())
    assert one.app_state.gauges.pinned() == 123


def test_silence_is_skipped_twice_a_second(page):
    p = page(ScriptedEngine(hold=True))
    run = p.press()
    begin = time.monotonic()
    steps = [next(run) for _ in range(6)]
    assert steps
    assert time.monotonic() - begin < 10
    run.close()


def test_stop(page):
    p = page(ScriptedEngine(num_segments=100_000))
    updates = []
    for update in p.press():
        updates.append(update)
        if isinstance(update.get("live"), str):
            p.visits.stop("v")
    assert 'data-state="stopped"' in updates[-1]["status"]
    assert updates[-1]["result"]["visible"] is True


def test_a_second_press_of_the_same_page_replaces_the_first(page):
    p = page(ScriptedEngine(hold=True))
    first = p.press()
    next(first)
    second = p.press()
    next(second)
    assert not updates_of(list(first), "generate"), "the first says nothing more of the buttons"
    p.engine.go.set()
    assert 'data-state="done"' in list(second)[-1]["status"]


def test_waiting_and_a_full_queue(page):
    p = page(ScriptedEngine(hold=True), max_waiting=1)
    first, second = p.press(visit="a"), p.press(visit="b")
    next(first)
    while p.job_queue.running is None:
        time.sleep(0.01)
    waiting = [next(second) for _ in range(3)]
    assert any("You are next" in str(update.get("status")) for update in waiting)
    with pytest.raises(QueueFull):
        next(p.press(visit="c"))
    second.close()
    first.close()


def test_an_error_after_frames_is_reported_with_the_video(page):
    p = page(ScriptedEngine(fail_at=2, error=WorkerLost("The engine's process was killed.", "Try again.")))
    updates: list[dict] = []
    with pytest.raises(AvatarError, match="was killed"):
        gather(p.press(), updates)
    assert 'data-state="failed"' in updates[-1]["status"]
    assert updates[-1]["result"]["visible"] is True
    [entry] = p.app_state.gallery.entries()
    assert entry.about.num_frames == 100
    assert not p.app_state.gallery.entries(owner_hash("someone else"))


def test_an_error_before_any_frame_resets_the_page(page):
    p = page(ScriptedEngine(fail_at=0, error=RuntimeError("/secret")))
    updates: list[dict] = []
    with pytest.raises(RuntimeError):
        gather(p.press(), updates)
    assert updates[-1]["generate"]["interactive"] is True
    assert 'data-state="failed"' in updates[-1]["status"]
    assert "/secret" not in str(updates)


def test_inputs_are_asked_for(page):
    with pytest.raises(BadInput, match="Choose a portrait"):
        list(page().press(portrait=None))


def test_points_are_asked_for_when_there_is_no_face(page, plain: Path):
    p = page()
    [update] = list(p.press(plain))
    question = update["points"]
    assert question["value"]["verdict"] == "none"
    assert set(question["value"]["points"]) == set(point_editor.POINTS)
    assert question["image"].startswith("data:image/jpeg;base64,")
    assert p.engine.requests == []
    placed = {name: [0.5, 0.5 + 0.05 * number] for number, name in enumerate(point_editor.START)}
    placed |= {name: list(at) for name, at in point_editor.START.items()}
    list(p.press(plain, asked={**question["value"], "points": placed}))
    assert set(p.engine.requests[-1].face_points) == set(point_editor.POINTS)
    list(p.press(plain, asked={**question["value"], "head_only": True}))
    assert p.engine.requests[-1].face_points is None
    assert p.engine.requests[-1].head_only


def test_an_answer_for_another_portrait_does_not_count(page, plain: Path):
    p = page()
    stale = {"for": "other.png", "verdict": "none", "points": dict(point_editor.START), "head_only": False}
    [update] = list(p.press(plain, asked=stale))
    assert "points" in update


def test_bundled_portraits_bring_their_points(page):
    p = page()
    list(p.press(ASSETS / "portraits" / "captain.png"))
    assert p.engine.requests[-1].face_points["chin"]


def test_a_second_run_is_not_refused_where_processes_are_hidden(page, monkeypatch):
    """In a container, the driver may not report that most of the memory in use is our own engine's."""
    made, card = page(), Inventory.imagine(1, 80)
    monkeypatch.setattr("avatar.ui.state.machine_presets.probe", lambda *_: card)
    monkeypatch.setattr("avatar.ui.state.machine_presets.INVENTORY_FRESH_S", -1.0)
    made.engine.plan = plan(load_preset("80gb"), card)
    run = submission.submit(made.app_state, PORTRAIT, SPEECH, "80gb", {})
    assert list(run.follow())
    run.let_go()
    gpu = card.gpus[0]
    used = {"free_bytes": gpu.total_bytes // 10, "used_bytes": gpu.total_bytes * 9 // 10}
    card = replace(card, gpus=(replace(gpu, **used, hides_processes=True),))
    assert made.app_state.machine.verdict(load_preset("80gb")).ok
    card = replace(card, gpus=(replace(gpu, **used),))  # certainly other processes' memory
    assert not made.app_state.machine.verdict(load_preset("80gb")).ok


def test_an_empty_prompt_is_the_presets_own(page, monkeypatch):
    made = page()
    monkeypatch.setattr("avatar.ui.state.machine_presets.probe", lambda *_: Inventory.imagine(1, 80))
    own = load_preset("80gb").generation.prompt
    for given, prompt in (("", own), ("  ", own), ("A fox sings.", "A fox sings.")):
        run = submission.submit(made.app_state, PORTRAIT, SPEECH, "80gb", {}, prompt=given)
        assert run.request.prompt == prompt
        assert list(run.follow())
        run.let_go()


def test_settings_reach_the_request_and_wrong_ones_are_refused(page):
    p = page()
    list(p.press(seed=9, size="256*256", sample_steps=2))  # the preview's form has no steps to change
    used = p.engine.requests[-1].preset
    assert (used.name, used.generation.seed, used.generation.size) == ("cpu-preview", 9, "256*256")
    with pytest.raises(BadInput, match="size"):
        list(p.press(size="large"))
    assert not list(p.app_state.scratch.glob("run-*"))
    assert not list(p.app_state.gallery.folder.glob(".draft-*"))


def test_look_at_a_face(plain: Path):
    assert point_editor.look_at(PORTRAIT, Examples(), InputLimits()).verdict == "face"
    assert point_editor.look_at(plain, Examples(), InputLimits()).verdict == "none"
    weak = point_editor.look_at(PORTRAIT.with_name("captain.png"), Examples(), InputLimits())
    assert weak.verdict == "placed"
    assert not weak.asks


def test_answers():
    found = {"points": {"chin": [0.5, 1]}, "verdict": "face"}
    assert framing_panel.answer(None) is None
    assert framing_panel.answer({**found, "verdict": "none", "head_only": True}) is None
    assert framing_panel.answer({**found, "verdict": "weak"}) == {"chin": [0.5, 1]}
    assert framing_panel.answer(found) is None, "the engine finds it itself"
    assert framing_panel.answer({**found, "edited": True}) == {"chin": [0.5, 1]}


def typed(text: str, spoken: Any = None, captions: str = "file", voice: str = "heart") -> tuple[Any, ...]:
    """The tab Type's values."""
    return ("type", text, voice, 1, captions, spoken)


def test_a_text_is_spoken_and_then_animated_with_its_captions(page):
    p = page()
    updates = list(p.press(typed=typed("Hello there. It works.", captions="burned")))
    [spoken] = updates_of(updates, "spoken")
    [request] = p.engine.requests
    assert [one.text for one in request.captions] == ["Hello there.", "It works."]
    assert request.burn_captions
    assert request.speech_name == "“Hello there. It works.”"
    assert updates_of(updates, "speech")[0]["value"] == str(spoken.path)
    assert spoken.path.is_relative_to(p.app_state.speech_service._uploads.folder)


def test_a_text_that_was_heard_is_not_spoken_again(page, monkeypatch):
    p = page()
    request = gr.Request()
    request.kwargs = {"headers": {}}
    heard = list(p.generate.typing.hear(request, *typed("Hello there.")[1:]))
    spoken = heard[-1]["spoken"]
    monkeypatch.setattr(p.app_state.speech_service, "speak", lambda *_: pytest.fail("it was spoken again"))
    list(p.press(typed=typed("Hello there.", spoken, captions="off")))
    assert p.engine.requests[0].captions == ()


@pytest.mark.parametrize("other", [typed("Hello you."), typed("Hello there.", voice="url/alloy")])
def test_another_text_or_voice_is_spoken_anew(page, other):
    p = page()
    request = gr.Request()
    request.kwargs = {"headers": {}}
    *_, spoken = p.app_state.speech_service.speak(Script("Hello there."), "me")
    if other[2] == "heart":
        *_, new = p.generate.typing.spoken_text(request, *other[1:-1], spoken)
        assert new.path != spoken.path
    else:
        with pytest.raises(BadInput, match="no voice 'url/alloy'"):
            list(p.generate.typing.spoken_text(request, *other[1:-1], spoken))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (typed(" "), "Type the text to speak first."),
        (typed("你好"), "does not read Han"),
        (("type", None, {}, "fast", 3, "x"), "Type the text to speak first."),
        (("type", "Hi.", ["heart"], 1.0, "file", None), "voice must be text"),
        (("type", "Hi.", "heart", "fast", "file", None), "speed must be a number"),
    ],
)
def test_a_text_that_cannot_be_said_is_refused(page, given, words):
    p = page()
    with pytest.raises(BadInput) as refused:
        list(p.press(typed=given))
    assert words in str(refused.value)
    assert p.engine.requests == []


def test_one_visitor_may_have_few_texts_spoken_at_once(page):
    speech_service = page().app_state.speech_service
    begun = [speech_service.speak(Script("One. Two. Three."), "me") for _ in range(3)]
    next(begun[0])
    next(begun[1])
    with pytest.raises(VoicesBusy):
        next(begun[2])
    begun[0].close()
    assert next(speech_service.speak(Script("One. Two."), "me")) is None
    assert len(list(speech_service._uploads._staging.iterdir())) == 1, "what was left is cleared away"


def test_every_voice_has_a_label_in_both_languages(page):
    p = page()
    for language in ("en", "zh"):
        labels = [label for label, _ in choices(p.app_state.speech_service.every_voice(), language)]
        assert len(labels) > 30
        assert labels[0] == {"en": "Heart · American woman", "zh": "Heart · 美式英语女声"}[language]
    assert not [label for label in labels if "woman" in label or " man" in label]
