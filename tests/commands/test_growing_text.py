"""`generate --text` with a slow voice: the video begins while it speaks, and all else is as ever."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import pytest

from avatar.cli import main
from avatar.commands import generate
from avatar.errors import BadInput
from avatar.long import job
from avatar.long.job import Job
from avatar.media.speaker_choice import AskedSpeaker, asked_speakers
from avatar.preset import load_preset
from avatar.runtime.engine_process import EngineProcess
from avatar.runtime.report import read_report
from avatar.speech import voicing
from avatar.speech.narration import Script
from avatar.speech.remote import RemoteVoices
from tests.commands.surroundings import lines
from tests.speech.conftest import SpeechServer, speech_server

SENTENCES = [f"This is the sentence of number {number} that is said." for number in range(1, 7)]
TEXT = " ".join(SENTENCES)
PRESET = load_preset("cpu-preview")
PORTRAIT = Path(__file__).parents[2] / "assets" / "portraits" / "mara.png"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[SpeechServer]:
    with speech_server() as running:
        monkeypatch.setenv("AVATAR_SPEECH_URL", running.url)
        yield running


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every voice counts as slow, once it has said its first sentence."""
    monkeypatch.setattr(voicing.Voicing, "_is_slow", lambda self: len(self.captions) > 0)


@pytest.fixture
def preview(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real engine, in a process of its own."""
    opened = lambda *_, **__: EngineProcess("avatar.preview.source:PreviewSource")  # noqa: E731
    monkeypatch.setattr(generate, "open_engine", opened)


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: Any) -> list[str]:
    monkeypatch.chdir(tmp_path)
    portrait = ["generate", "--image", str(PORTRAIT), "--preset", "cpu-preview", "--size", "192*192"]
    return [*portrait, "--text", TEXT, "--voice", "url/alloy"]


def gated(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], None]) -> None:
    """Call act with the number of each sentence before it is asked for."""
    said, ask = [], RemoteVoices.synthesise

    def synthesise(self: RemoteVoices, text: str, voice: str, speed: float = 1.0) -> Iterator[Any]:
        said.append(text)
        act(len(said))
        yield from ask(self, text, voice, speed)

    monkeypatch.setattr(RemoteVoices, "synthesise", synthesise)


def asked_for(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set once the video is asked for."""
    asked, ask = threading.Event(), job.open_request

    def open_request(*arguments: Any, **options: Any) -> Any:
        asked.set()
        return ask(*arguments, **options)

    monkeypatch.setattr(job, "open_request", open_request)
    return asked


def test_the_first_segment_comes_before_the_last_sentence(typed, server, slow, preview, monkeypatch, capsys):
    shown = threading.Event()
    show = generate._as_json

    def as_json(event: Any) -> dict[str, Any]:
        if type(event).__name__ == "Segment":
            shown.set()
        return show(event)

    monkeypatch.setattr(generate, "_as_json", as_json)
    in_time: list[bool] = []
    gated(monkeypatch, lambda number: in_time.append(number < len(SENTENCES) or shown.wait(60)))
    assert main([*typed, "--output", "out.mp4", "--json"]) == 0
    assert in_time == [True] * len(SENTENCES)
    said = lines(capsys)
    finished = next(one for one in said if one["event"] == "finished")
    assert finished["num_frames"] == read_report(Path("out.report.json")).frames_asked > 250
    assert [one["code"] for one in said if one["event"] == "notice"] == ["growing"]
    assert Path("out.srt").read_text(encoding="utf-8").count("-->") == len(SENTENCES)
    totals = [one["num_frames"] for one in said if one["event"] == "progress"]
    assert totals[-1] == finished["num_frames"]
    assert max(totals) < 4 * finished["num_frames"], "an estimate, not the longest that is allowed"


def test_the_video_is_that_of_a_voice_that_was_waited_for(typed, server, preview, monkeypatch):
    assert main([*typed, "--output", "whole.mp4"]) == 0
    monkeypatch.setattr(voicing.Voicing, "_is_slow", lambda self: len(self.captions) > 0)
    begun = asked_for(monkeypatch)
    gated(monkeypatch, lambda number: number < 2 or begun.wait(60))
    assert main([*typed, "--output", "grown.mp4"]) == 0
    assert "growing" in Path("grown.report.json").read_text(encoding="utf-8")
    assert Path("whole.mp4").read_bytes() == Path("grown.mp4").read_bytes()
    assert Path("whole.srt").read_bytes() == Path("grown.srt").read_bytes()


def test_a_server_that_goes_midway_keeps_what_was_said(typed, server, slow, preview, monkeypatch, capsys):
    begun = asked_for(monkeypatch)

    def act(number: int) -> None:
        server.status = 503 if number > 3 else 200
        assert number < 2 or begun.wait(60)

    gated(monkeypatch, act)
    assert main([*typed, "--output", "out.mp4"]) == 1
    assert "fails (status 503)" in capsys.readouterr().err
    report = read_report(Path("out.report.json"))
    assert report.stopped
    assert "fails (status 503)" in report.error
    assert "number 3" in Path("out.srt").read_text(encoding="utf-8")
    with av.open("out.mp4") as video:
        assert video.streams.video[0].frames == report.num_frames > 100


@pytest.mark.parametrize(
    "flags",
    [["--checkpoint-every", "2"], ["--resume"], ["--trim"], ["--max-duration", "30"]],
)
def test_what_needs_the_length_waits_for_the_voice(typed, server, slow, preview, monkeypatch, flags):
    gated(monkeypatch, lambda number: threading.Event().wait(0.1))
    assert main([*typed, *flags, "--output", "out.mp4"]) == 0
    assert len(server.asked) == len(SENTENCES)
    assert "growing" not in Path("out.report.json").read_text(encoding="utf-8")


def test_captions_of_others_are_not_replaced_by_a_slow_voice(typed, server, slow, preview, capsys):
    Path("out.srt").write_text("mine")
    assert main([*typed, "--output", "out.mp4"]) == 2
    assert "out.srt is there already" in capsys.readouterr().err
    assert Path("out.srt").read_text() == "mine"


def test_a_voice_that_never_begins_is_reported_at_once(typed, server, slow, preview, capsys):
    server.status = 401
    assert main([*typed, "--output", "out.mp4"]) == 1
    assert "does not accept the key" in capsys.readouterr().err
    assert not Path("out.mp4").exists()


def test_a_text_in_one_piece_alone_may_grow(typed, server, slow, tmp_path, monkeypatch):
    allowed: list[bool] = []
    wait = voicing.Voicing.wait

    def noted(self: voicing.Voicing, may_grow: bool) -> Iterator[None]:
        allowed.append(may_grow)
        return wait(self, may_grow=False)

    monkeypatch.setattr(voicing.Voicing, "wait", noted)
    for number, resume in enumerate((False, True)):
        order = Job(PORTRAIT, None, Path("o.mp4"), PRESET, script=Script("Hello."), resume=resume)
        with order._speech(tmp_path / f"work{number}", long=False) as speech:
            assert speech.growing is None
    assert allowed == [True, False]


def test_several_speakers_texts_are_spoken_first(typed, server, slow, tmp_path):
    texts = [AskedSpeaker("1", text="Hello."), AskedSpeaker("1", text="Good morning.")]
    asked = asked_speakers(texts[:1], None, recording=False)
    order = Job(PORTRAIT, None, Path("o.mp4"), PRESET, speakers=asked)
    with order._speech(tmp_path / "work", long=False) as speech:
        assert (speech.path, speech.growing) == (None, None)
        assert speech.sound.is_file()
        assert [path.is_file() for path in speech.speakers.recordings] == [True]
    order = replace(order, speakers=asked_speakers(texts, None, recording=False))
    spoken = order._speech(tmp_path, long=False)
    with pytest.raises(BadInput, match="Two speakers have the same face"), spoken:
        pytest.fail("it is refused before it is spoken")
