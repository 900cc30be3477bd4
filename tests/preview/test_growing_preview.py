"""The preview begins before a text's voice has ended, and makes the same video as afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from avatar.errors import AvatarError
from avatar.events import Event, Finished, Segment
from avatar.media.growing import GrowingRecording
from avatar.media.intake import open_request
from avatar.preset import load_preset
from avatar.preview.source import PreviewSource
from avatar.request import Request
from avatar.runtime.report import read_report
from avatar.runtime.stream import stream_frames
from tests.fixtures.growing import SlowVoice, interleaved

PRESET = load_preset("cpu-preview").with_settings(size="192*192")
PORTRAIT = Path(__file__).parents[2] / "assets" / "portraits" / "mara.png"
LENGTHS_S = (2.1, 2.4, 1.9, 2.2, 1.31)


@pytest.fixture(scope="module")
def source() -> PreviewSource:
    return PreviewSource()


@pytest.fixture
def ask(tmp_path: Path) -> Callable[..., Request]:
    """A request for a voice's speech: complete, with its captions, or growing."""

    def request(voice: SlowVoice, name: str, grows: bool = True, burn: bool = False) -> Request:
        said = GrowingRecording(voice.journal).look().captions
        return open_request(
            PORTRAIT,
            voice.wav,
            PRESET,
            output=tmp_path / f"{name}.mp4",
            work=tmp_path / name,
            spoken="a digest",
            captions=voice.outline if grows else said,
            burn_captions=burn,
            growing=voice.journal if grows else None,
        )

    return request


def begun(folder: Path) -> SlowVoice:
    """A voice that has said its first sentence."""
    folder.mkdir()
    voice = SlowVoice(folder, LENGTHS_S)
    voice.next()
    return voice


def is_segment(event: object) -> bool:
    return isinstance(event, Segment)


def of_segments(events: Iterator[Event]) -> list[tuple[int, int]]:
    return [(one.start_frame, one.num_frames) for one in events if isinstance(one, Segment)]


@pytest.mark.parametrize("burn", [False, True])
def test_the_video_is_the_same_and_begins_before_the_last_sentence(source, ask, tmp_path, burn):
    whole = ask(begun(tmp_path / "finished").all(), "whole", grows=False, burn=burn)
    before = list(stream_frames(source, whole))
    voice = begun(tmp_path / "grows")
    request = ask(voice, "grown", burn=burn)
    events = interleaved(voice, stream_frames(source, request), is_segment)
    assert voice.events.index("made") < voice.events.index(f"said {len(LENGTHS_S)}")
    assert of_segments(events) == of_segments(before)
    assert whole.output.read_bytes() == request.output.read_bytes()
    assert whole.output.with_suffix(".srt").read_bytes() == request.output.with_suffix(".srt").read_bytes()
    report = read_report(request.output.with_suffix(".report.json"))
    assert report.frames_asked == report.num_frames == 248
    assert report.notices[0]["code"] == "growing"


def test_a_voice_that_fails_midway_keeps_what_was_said(source, ask, tmp_path):
    voice = begun(tmp_path / "fails")
    voice.next()
    voice.fail(AvatarError("The speech server is gone.", "Try again later."))
    request, events = ask(voice, "kept"), []

    def follow() -> None:
        for event in stream_frames(source, request):
            events.append(event)

    with pytest.raises(AvatarError, match="The speech server is gone"):
        follow()
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert finished.stopped
    assert finished.error == "The speech server is gone. Try again later."
    assert finished.num_frames == 113
    shown = request.output.with_suffix(".srt").read_text(encoding="utf-8")
    assert "sentence 2" in shown
    assert "sentence 3" not in shown
    with av.open(str(request.output)) as video:
        assert video.streams.video[0].frames == 113


def test_stop_ends_a_run_that_waits_for_its_voice(source, ask, tmp_path):
    voice = begun(tmp_path / "stopped")
    voice.next()
    voice.next()
    request, stopped = ask(voice, "stop"), []
    events = list(stream_frames(source, request, lambda: bool(stopped) or _has_two(request, stopped)))
    last = events[-1]
    assert isinstance(last, Finished)
    assert last.stopped
    assert last.error is None
    assert 36 <= last.num_frames <= 160
    assert voice.num_said == 3
    with av.open(str(request.output)) as video:
        pictures = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(pictures) == last.num_frames
    assert np.std(pictures[-1]) > 5


def _has_two(request: Request, stopped: list[bool]) -> bool:
    """Whether two segments are on the disk; notes that the user presses Stop then."""
    if len(list(request.work.glob("segment-*.mp4"))) > 2:
        stopped.append(True)
    return bool(stopped)
