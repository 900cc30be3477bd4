"""The engine that enlarges: its engine's events come through in order, and Finished before any error."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from avatar.errors import AvatarError, Cancelled
from avatar.events import Event, Finished, Notice, Phase, Progress
from avatar.geometry import Size
from avatar.media import upscale
from avatar.media.intake import open_request
from avatar.media.sample_inputs import write_sample
from avatar.preset import load_preset
from avatar.request import Part, Request
from avatar.runtime.report import read_report
from avatar.runtime.stream import stream_frames
from avatar.runtime.upscaled_video import UpscaledVideo
from tests.fixtures.sources import Coloured


class Engine:
    """Plain colours, in this process; error: raised after Finished."""

    label = "colours"

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.closed, self.cancelled = error, False, False

    def stream(self, request: Request) -> Iterator[Event]:
        try:
            yield from stream_frames(Coloured(), request)
            if self.error is not None:
                raise self.error
        finally:
            self.closed = True

    def cancel(self) -> None:
        self.cancelled = True

    def close(self) -> None:
        pass


@pytest.fixture
def request_of(tmp_path: Path):
    def build(upscaled: str = "1080p") -> Request:
        portrait, speech = write_sample(tmp_path, Size(96, 96), 0.6)
        preset = load_preset("self-test").with_settings(upscale=upscaled)
        return open_request(
            portrait, speech, preset, output=tmp_path / "o.mp4", work=tmp_path / "work", prompt="x"
        )

    return build


def gathered(events: Iterator[Event]) -> tuple[list[Event], Exception | None]:
    found: list[Event] = []
    try:
        for event in events:
            found.append(event)
    except AvatarError as error:
        return found, error
    return found, None


def test_finished_comes_last_and_once_with_progress_before(request_of):
    events, error = gathered(UpscaledVideo(Engine()).stream(request_of()))
    assert error is None
    assert [type(one) for one in events].count(Finished) == 1
    assert isinstance(events[-1], Finished)
    assert any(isinstance(one, Progress) and one.phase is Phase.UPSCALING for one in events)
    assert read_report(events[-1].report).upscaled.by == "lanczos"


def test_an_engines_error_comes_after_finished_and_nothing_is_enlarged(request_of):
    engine = Engine(AvatarError("The disk is full."))
    events, error = gathered(UpscaledVideo(engine).stream(request_of()))
    assert isinstance(events[-1], Finished)
    assert error is engine.error
    assert read_report(events[-1].report).upscaled is None


def test_an_engine_without_a_video_just_raises(request_of):
    class Failing(Engine):
        def stream(self, request):
            yield Notice("a", "A notice.")
            raise Cancelled("Stopped before the first frame.")

    events, error = gathered(UpscaledVideo(Failing()).stream(request_of()))
    assert [type(one) for one in events] == [Notice]
    assert isinstance(error, Cancelled)


def test_stopping_while_it_enlarges_keeps_the_video(request_of):
    video = UpscaledVideo(Engine())

    def stopping() -> Iterator[Event]:
        for event in video.stream(request_of()):
            if isinstance(event, Progress) and event.phase is Phase.UPSCALING:
                video.cancel()
            yield event

    events, error = gathered(stopping())
    assert isinstance(error, Cancelled)
    assert "o.mp4 is finished at" in str(error)
    assert isinstance(events[-1], Finished)
    assert not events[-1].stopped
    assert events[-1].video.is_file()
    assert read_report(events[-1].report).upscaled is None
    assert list(events[-1].video.parent.glob(".*")) == []


def test_nothing_is_enlarged_unasked_nor_of_a_part(request_of, monkeypatch):
    monkeypatch.setattr(upscale, "_written", None)  # would fail if it were used
    plain = request_of("off")
    part = replace(request_of(), part=Part("run", 0, plain.num_frames))
    for request in (plain, part):
        events, error = gathered(UpscaledVideo(Engine()).stream(request))
        assert error is None
        assert isinstance(events[-1], Finished)


def test_closing_it_ends_its_engine(request_of):
    engine = Engine()
    stream = UpscaledVideo(engine).stream(request_of())
    next(stream)
    stream.close()
    assert engine.closed
