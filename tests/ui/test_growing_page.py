"""A text on the page with a slow voice: its video begins while it speaks, and can be resumed rightly."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from engines import ScriptedEngine
from pages import Page, updates_of

from avatar.errors import AvatarError, BadInput, Cancelled
from avatar.events import Segment
from avatar.preset import load_presets
from avatar.preview.source import PreviewSource
from avatar.request import Request
from avatar.runtime.gallery import HALF, Gallery
from avatar.settings import Speaking
from avatar.speech import voicing
from avatar.speech.catalogue import Catalogue
from avatar.speech.hibari_voices import EmbeddedVoices
from avatar.speech.narration import Narrator, Script
from avatar.ui.state import submission
from avatar.ui.state.app_state import AppState
from avatar.ui.state.job_queue import JobQueue, KeptVideo, QueuedRun
from avatar.ui.state.speech_service import GrowingText, SpokenText
from avatar.ui.state.uploads import Uploads
from tests.long.runs import Here

PORTRAIT = Path(__file__).parents[2] / "assets" / "portraits" / "mara.png"
TEXT = " ".join(f"This is the sentence of number {number} that is said." for number in range(1, 7))
SCRIPT = Script(TEXT, Speaking(captions="file"))
SETTINGS = {"size": "192*192"}


@pytest.fixture(scope="module")
def engine() -> PreviewSource:
    return PreviewSource()


class Held:
    """The preview, which stops after two seconds of video until it is let go on, where it is held."""

    label = "preview"

    def __init__(self, source: PreviewSource) -> None:
        self._source, self.go = source, threading.Event()
        self.go.set()

    def frames(self, request: Request, cancelled: Callable[[], bool]) -> Iterator[Any]:
        num_frames = 0
        for item in self._source.frames(request, cancelled):
            yield item
            num_frames += len(item) if isinstance(item, np.ndarray) else 0
            while num_frames > 50 and not self.go.wait(0.02):
                if cancelled():
                    raise Cancelled("The run was stopped.")

    def close(self) -> None:
        """Nothing is held."""


@pytest.fixture
def held(engine: PreviewSource) -> Held:
    return Held(engine)


@pytest.fixture
def app_state(tmp_path: Path, held: Held, monkeypatch: pytest.MonkeyPatch) -> Iterator[AppState]:
    monkeypatch.setattr(voicing.Voicing, "_is_slow", lambda self: len(self.captions) > 0)
    (tmp_path / "scratch").mkdir()
    gallery = Gallery(tmp_path / "outputs")
    queue = JobQueue(lambda preset: Here(held), gallery)
    yield AppState(
        queue, gallery, load_presets(), "auto", tmp_path / "scratch", uploads=Uploads(tmp_path / "uploads")
    )
    queue.close()
    gallery.close()


class Gate:
    """Holds the voice back at some sentence, until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said: list[str] = []
        self.at: int | None = None
        self.fails_at: int | None = None
        self.opened = threading.Event()
        speak = EmbeddedVoices.synthesise

        def synthesise(engine: EmbeddedVoices, text: str, voice: str, speed: float = 1.0) -> Iterator[Any]:
            self.said.append(text)
            if len(self.said) == self.at:
                assert self.opened.wait(60)
            if len(self.said) == self.fails_at:
                raise AvatarError("The voice is hoarse.", "Let it rest.")
            yield from speak(engine, text, voice, speed)

        monkeypatch.setattr(EmbeddedVoices, "synthesise", synthesise)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


def begun(app_state: AppState) -> GrowingText:
    """A text whose voice has said something and goes on."""
    service = app_state.speech_service
    assert service is not None
    may_grow = partial(submission.may_grow, app_state, "auto", SETTINGS)
    *_, said = service.begin(SCRIPT, "me", may_grow)
    assert isinstance(said, GrowingText)
    return said


def submit(app_state: AppState, said: GrowingText) -> QueuedRun:
    return submission.submit(
        app_state,
        PORTRAIT,
        said.path,
        "auto",
        SETTINGS,
        owner="me",
        growing=said,
        captions=said.shown,
        spoken=said.script.digest,
        speech_name=said.script.title,
    )


def ended(run: QueuedRun, act: Callable[[Any], None] = lambda event: None) -> KeptVideo:
    last = None
    for event in run.follow():
        act(event)
        last = event
    run.let_go()
    run.over.wait(10)
    assert isinstance(last, KeptVideo)
    return last


def pictures(video: Path) -> np.ndarray:
    with av.open(str(video)) as opened:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in opened.decode(video=0)])


def whole_video(app_state: AppState) -> np.ndarray:
    """What is made when nothing interferes."""
    return pictures(ended(submit(app_state, begun(app_state))).entry.video)


def test_segments_come_while_the_voice_is_held_back(app_state, gate):
    gate.at = 6
    said = begun(app_state)

    def act(event: Any) -> None:
        if isinstance(event, Segment):
            gate.opened.set()

    kept = ended(submit(app_state, said), act)
    assert len(gate.said) == 6
    assert kept.error is None
    assert not kept.finished.stopped
    assert kept.entry.video.with_suffix(".vtt").read_text(encoding="utf-8").count("-->") == 6
    assert not said.folder.exists(), "the voice's files are removed"
    assert not (kept.entry.folder / HALF).exists()


def test_a_video_stopped_after_its_text_was_spoken_is_resumed_with_that_speech(app_state, gate, held):
    expected = whole_video(app_state)
    held.go.clear()
    said = begun(app_state)
    run = submit(app_state, said)
    over = threading.Event()
    said.voicing.when_over(over.set)
    assert over.wait(30)
    num_said = len(gate.said)
    kept = ended(run, lambda event: run.cancel() if isinstance(event, Segment) else None)
    assert kept.finished.stopped
    held.go.set()
    again = submission.resume(app_state, kept.entry.id, "me")
    assert again.request.growing is None
    video = ended(again).entry.video
    assert len(gate.said) == num_said, "nothing is spoken again"
    assert np.array_equal(pictures(video), expected)
    assert video.with_suffix(".srt").read_text(encoding="utf-8").count("-->") == 6


def test_stop_ends_the_voice_and_resume_speaks_the_text_again(app_state, gate):
    expected = whole_video(app_state)
    gate.said.clear()
    gate.at = 5
    run = submit(app_state, begun(app_state))
    kept = ended(run, lambda event: run.cancel() if isinstance(event, Segment) else None)
    assert kept.finished.stopped
    gate.opened.set()
    run.voice.voicing._thread.join(30)
    assert len(gate.said) == 5, "the sixth sentence is not spoken any more"
    again = submission.resume(app_state, kept.entry.id, "me")
    assert again.request.growing is not None
    done = ended(again)
    assert not done.finished.stopped
    assert np.array_equal(pictures(done.entry.video), expected)


def test_a_voice_that_fails_keeps_what_it_said(app_state, gate):
    gate.at = gate.fails_at = 4
    run = submit(app_state, begun(app_state))
    gate.opened.set()
    kept = ended(run)
    assert str(kept.error) == "The voice is hoarse. Let it rest."
    assert kept.finished.stopped
    assert 100 < kept.finished.num_frames < 260
    assert kept.entry.is_unfinished
    half = json.loads((kept.entry.folder / HALF / "request.json").read_text(encoding="utf-8"))
    assert half["script"]["text"] == TEXT


def test_a_voice_that_fails_at_once_makes_no_video(app_state, gate):
    gate.fails_at = 1
    with pytest.raises(AvatarError, match="The voice is hoarse"):
        begun(app_state)
    assert list(app_state.uploads._staging.iterdir()) == []


def test_a_run_that_leaves_the_queue_ends_its_voice(app_state, gate):
    gate.at = 3
    said = begun(app_state)
    run = submit(app_state, said)
    run.unwanted = True
    run.cancel()
    gate.opened.set()
    with pytest.raises(Cancelled):
        list(run.follow())
    said.voicing._thread.join(30)
    assert len(gate.said) < 6


def test_what_must_know_the_length_waits_for_the_voice(app_state):
    service, trimmed = app_state.speech_service, {**SETTINGS, "trim": True}
    may_grow = partial(submission.may_grow, app_state, "auto", trimmed)
    *_, said = service.begin(SCRIPT, "me", may_grow)
    assert isinstance(said, SpokenText)
    assert len(said.captions) == 6


def test_a_wrong_setting_is_refused_before_anything_is_said(app_state, gate):
    service, wrong = app_state.speech_service, {"size": "large"}
    with pytest.raises(BadInput, match="size"):
        next(service.begin(SCRIPT, "me", partial(submission.may_grow, app_state, "auto", wrong)))
    assert gate.said == []


def test_generate_shows_the_sound_once_it_is_complete(tmp_path, monkeypatch):
    monkeypatch.setattr(voicing.Voicing, "_is_slow", lambda self: len(self.captions) > 0)
    page = Page(tmp_path, ScriptedEngine(hold=True))
    updates: list[dict[str, Any]] = []
    for update in page.press(PORTRAIT, typed=("type", TEXT, "heart", 1, "file", None)):
        updates.append(update)
        if page.engine.requests and page.job_queue.running and page.job_queue.running.voice.voicing.is_whole:
            page.engine.go.set()
    [request] = page.engine.requests
    assert request.growing is not None
    assert len(request.captions) == 6
    [spoken] = updates_of(updates, "spoken")
    assert len(spoken.captions) == 6
    assert spoken.path.is_file()
    assert updates_of(updates, "speech")[0]["value"] == str(spoken.path)
    page.job_queue.close()


def test_a_long_text_of_the_diffusion_engine_is_made_in_parts(app_state):
    short, long = (Narrator.of(Script(TEXT * times), Catalogue()) for times in (1, 4))
    assert submission.may_grow(app_state, "self-test", {}, short)
    assert not submission.may_grow(app_state, "self-test", {}, long)
    assert submission.may_grow(app_state, "auto", {}, long)
    app_state.engines_here = False
    assert not submission.may_grow(app_state, "self-test", {}, short)
    assert submission.may_grow(app_state, "auto", {}, short)
