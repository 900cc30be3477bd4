"""Any source of frames becomes events and files; whatever goes wrong, what was made is kept and reported."""

from __future__ import annotations

import errno
import json
import pickle
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from media_samples import coded_pictures, decode_pictures, decode_sound, moving, probe
from PIL import Image

from avatar.errors import AvatarError, Cancelled, DoesNotFit, NotPlaced, WorkerLost
from avatar.events import Event, Finished, Notice, Phase, Progress, Segment
from avatar.media import atomic
from avatar.media.segments import SegmentWriter
from avatar.request import Request
from avatar.runtime.extent import segment_lengths
from avatar.runtime.report import RungTaken, read_report
from avatar.runtime.stream import finish_from_segments, stream_frames

Ask = Callable[..., Request]
LONG_S = 30.0  # no test waits so long; it only keeps a broken one from hanging


class Source:
    """Frames as an engine makes them; before the frame `at`, `act` is called, which may wait or raise."""

    label = "test"

    def __init__(
        self,
        batch: int = 10,
        at: int = -1,
        act: Callable[[], Notice | Progress | None] = lambda: None,
        extra: int = 0,
        size: tuple[int, int] = (96, 64),
    ) -> None:
        self.batch, self.at, self.act, self.extra, self.size = batch, at, act, extra, size
        self.made, self.ended = 0, threading.Event()

    def frames(
        self, request: Request, cancelled: Callable[[], bool]
    ) -> Iterator[np.ndarray | Notice | Progress]:
        try:
            yield Progress(Phase.ENCODING)
            yield Progress(Phase.GENERATING)
            total = request.num_frames + self.extra
            while self.made < total:
                if self.at == self.made:
                    said = self.act()
                    if said is not None:
                        yield said
                if cancelled():
                    raise Cancelled("Stopped.")
                count = min(self.batch, total - self.made)
                if self.made < self.at:
                    count = min(count, self.at - self.made)
                yield moving(count, *self.size, start=self.made)
                self.made += count
        finally:
            self.ended.set()

    def close(self) -> None:
        pass


def throw(error: Exception) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


def of(kind: type, events: list[Event]) -> list:
    return [event for event in events if isinstance(event, kind)]


def run(source: Source, request: Request, **more: object) -> tuple[list[Event], BaseException | None]:
    """All events, and the error at the end if there was one."""
    events: list[Event] = []
    try:
        for event in stream_frames(source, request, **more):  # type: ignore[arg-type]
            events.append(event)
    except Exception as error:
        return events, error
    return events, None


def no_threads_left() -> bool:
    return not [thread for thread in threading.enumerate() if thread.name in ("render", "encode")]


def test_a_whole_run(ask: Ask) -> None:
    request = ask(4.1, prompt="a person speaks", portrait_name="Ada.png")
    events, error = run(Source(), request)
    assert error is None
    segments, finished = of(Segment, events), events[-1]
    assert [segment.num_frames for segment in segments] == segment_lengths(103, 2.0, 25)
    assert [segment.start_frame for segment in segments] == [0, 18, 36, 86]
    assert all(segment.path.parent == request.work for segment in segments)
    assert finished == Finished(request.output, request.output.with_suffix(".report.json"), 103, 4.12)
    assert np.abs(decode_pictures(request.output).astype(int) - moving(103)).mean() < 4
    reported = probe(request.output)
    for kind in ("video", "audio"):
        assert abs(float(reported[kind]["duration"]) - 103 / 25) < 0.04
    last = of(Progress, events)[-1]
    assert (last.phase, last.frames_done, last.num_frames) == (Phase.FINISHING, 103, 103)
    assert (last.segments_done, last.num_segments, last.eta_s) == (4, 4, 0.0)
    assert last.fps > 0
    assert 0 < last.first_frame_s < last.elapsed_s
    assert no_threads_left()


def test_report_and_thumbnail_lie_beside_the_video(ask: Ask, tmp_path: Path) -> None:
    request = ask(2, prompt="hello", face_points={"chin": (0.5, 0.75)})
    source = Source(at=20, act=lambda: Notice("smaller", "Smaller now.", "warning", rung="size"))
    events, _ = run(source, request)
    assert of(Notice, events) == [Notice("smaller", "Smaller now.", "warning", rung="size")]
    names = sorted(path.name for path in request.output.parent.iterdir())
    assert names == ["film.mp4", "film.report.json", "film.thumb.jpg"]
    with Image.open(request.output.with_suffix(".thumb.jpg")) as thumbnail:
        assert (thumbnail.format, thumbnail.size) == ("JPEG", (96, 64))
    report = read_report(request.output.with_suffix(".report.json"))
    assert (report.video, report.thumbnail, report.portrait) == ("film.mp4", "film.thumb.jpg", "me.png")
    assert (report.speech, report.prompt, report.engine) == ("spoken words.wav", "hello", "test")
    assert (report.num_frames, report.frames_asked, report.duration_s) == (50, 50, 2.0)
    assert (report.width, report.height, report.stopped, report.error) == (96, 64, False, None)
    assert report.preset["generation"]["size"] == "320*240"
    assert report.rungs == [RungTaken("size", "smaller", "Smaller now.", 20)]
    assert report.notices[0]["text"] == "Smaller now."
    assert report.face_points == {"chin": [0.5, 0.75]}
    assert 0 < report.first_frame_s <= report.first_segment_s <= report.elapsed_s
    assert report.frames_per_s > 0
    assert {"python", "av", "numpy"} <= report.versions.keys()
    assert str(tmp_path) not in json.dumps(asdict(report)), "no folders"


def test_notices_of_the_intake_come_first(ask: Ask) -> None:
    events, _ = run(Source(), replace(ask(1), notices=(Notice("made_louder", "It is very quiet."),)))
    notice = next(event for event in events if not isinstance(event, Progress))
    assert isinstance(notice, Notice)
    assert notice.text == "It is very quiet."


def test_the_first_segment_needs_no_frame_beyond_it(ask: Ask) -> None:
    shown = threading.Event()
    source = Source(at=25, act=lambda: None if shown.wait(LONG_S) else pytest.fail("never shown"))
    for event in stream_frames(source, ask(4)):
        if isinstance(event, Segment):
            assert event.index or source.made == 25
            shown.set()
    assert source.made == 100


def test_progress_comes_while_the_source_is_busy(ask: Ask) -> None:
    enough = threading.Event()
    source = Source(at=50, act=lambda: None if enough.wait(LONG_S) else pytest.fail("no progress"))
    waiting = 0
    for event in stream_frames(source, ask(4)):
        waiting += isinstance(event, Progress) and event.frames_done == 50
        if waiting == 3:
            enough.set()
    assert waiting >= 3


def test_a_slow_consumer_slows_nothing_and_changes_nothing(ask: Ask) -> None:
    request = ask(8)
    run(Source(), request)
    quick = request.output.read_bytes()
    source = Source(batch=3)
    events = stream_frames(source, request)
    kept = [next(events)]
    assert source.ended.wait(LONG_S), "all frames are made though nobody looks"
    kept += list(events)
    assert sum(segment.num_frames for segment in of(Segment, kept)) == 200
    assert request.output.read_bytes() == quick


def test_nothing_starts_before_the_first_event_is_asked_for(ask: Ask) -> None:
    source = Source()
    events = stream_frames(source, ask(1))
    assert source.made == 0
    assert no_threads_left()
    events.close()


@pytest.mark.parametrize("made", [1, 25, 40])
def test_stopped_runs_keep_what_was_made(made: int, ask: Ask) -> None:
    request, stop = ask(4), threading.Event()
    events, error = run(Source(at=made, act=stop.set), request, cancelled=stop.is_set)
    assert error is None
    assert events[-1] == Finished(
        request.output, request.output.with_suffix(".report.json"), made, made / 25, stopped=True, error=None
    )
    assert sum(segment.num_frames for segment in of(Segment, events)) == made
    assert len(coded_pictures(request.output)) == made
    reported = probe(request.output)
    assert abs(float(reported["audio"]["duration"]) - made / 25) < 0.04
    report = read_report(request.output.with_suffix(".report.json"))
    assert (report.stopped, report.num_frames, report.frames_asked) == (True, made, 100)


def test_stopped_before_the_first_frame(ask: Ask) -> None:
    request, stop = ask(4), threading.Event()
    events, error = run(Source(at=0, act=stop.set), request, cancelled=stop.is_set)
    assert isinstance(error, Cancelled)
    assert not of(Finished, events)
    assert not list(request.output.parent.iterdir())
    assert sorted(path.name for path in request.work.iterdir()) == ["portrait.png", "speech.wav"]


def test_a_source_that_does_not_look_is_stopped_at_its_next_frames(ask: Ask) -> None:
    class Deaf(Source):
        def frames(
            self, request: Request, cancelled: Callable[[], bool]
        ) -> Iterator[np.ndarray | Notice | Progress]:
            return super().frames(request, lambda: False)

    source = Deaf(batch=1)
    events, error = run(source, ask(4), cancelled=lambda: source.made >= 30)
    assert error is None
    assert events[-1].stopped
    assert events[-1].num_frames < 100


@pytest.mark.parametrize("made", [0, 30])
def test_a_source_that_ends_without_a_word_when_stopped_was_stopped(made: int, ask: Ask) -> None:
    stop = threading.Event()

    class Silent(Source):
        def frames(
            self, request: Request, cancelled: Callable[[], bool]
        ) -> Iterator[np.ndarray | Notice | Progress]:
            try:
                yield from super().frames(request, cancelled)
            except Cancelled:
                return

    events, error = run(Silent(at=made, act=stop.set), ask(4), cancelled=stop.is_set)
    if made:
        assert error is None
        assert (events[-1].num_frames, events[-1].stopped, events[-1].error) == (made, True, None)
    else:
        assert isinstance(error, Cancelled)


@pytest.mark.parametrize("made", [0, 40])
def test_errors_of_the_engine_are_reported(made: int, ask: Ask) -> None:
    request = ask(4)
    events, error = run(Source(at=made, act=throw(DoesNotFit("Too little memory.", "Take 12gb."))), request)
    assert isinstance(error, DoesNotFit)
    if made:
        assert events[-1].stopped
        assert events[-1].error == "Too little memory. Take 12gb."
        assert len(coded_pictures(request.output)) == made
    else:
        assert not of(Finished, events)
        assert not list(request.output.parent.iterdir())


def test_a_bug_in_the_engine_is_not_shown_but_raised(ask: Ask) -> None:
    request = ask(4)
    events, error = run(Source(at=40, act=throw(RuntimeError("/secret/path exploded"))), request)
    assert isinstance(error, RuntimeError)
    assert events[-1].error
    assert "secret" not in events[-1].error
    assert "secret" not in request.output.with_suffix(".report.json").read_text()
    assert len(coded_pictures(request.output)) == 40


def test_too_few_frames_are_an_error(ask: Ask) -> None:
    request = ask(4)
    events, error = run(Source(extra=-10), request)
    assert isinstance(error, AvatarError)
    assert "90 of 100 frames" in str(error)
    assert (events[-1].num_frames, events[-1].stopped) == (90, True)


def test_surplus_frames_are_cut_and_reported(ask: Ask) -> None:
    request = ask(4)
    events, error = run(Source(batch=30, extra=20), request)
    assert error is None
    assert [(notice.code, notice.level) for notice in of(Notice, events)] == [("frames_cut", "warning")]
    assert len(coded_pictures(request.output)) == events[-1].num_frames == 100


def test_closing_the_iterator_ends_the_run_and_keeps_what_was_made(ask: Ask) -> None:
    request, source = ask(60), Source(batch=5)
    events = stream_frames(source, request)
    for event in events:
        if isinstance(event, Segment) and event.index == 1:
            break
    events.close()  # type: ignore[attr-defined]
    assert source.ended.is_set()
    assert no_threads_left()
    report = read_report(request.output.with_suffix(".report.json"))
    assert report.stopped
    assert 50 <= report.num_frames == len(coded_pictures(request.output)) < 1500


def test_a_full_disk_is_reported_and_whole_segments_are_kept(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, source = ask(20), Source(batch=1)
    write = SegmentWriter.write

    def failing(self: SegmentWriter, frames: np.ndarray) -> Iterator[Segment]:
        if self.num_frames >= 60:
            raise OSError(errno.ENOSPC, "No space left on device", "/secret/segment.mp4")
        return write(self, frames)

    monkeypatch.setattr(SegmentWriter, "write", failing)
    events, error = run(source, request)
    assert isinstance(error, AvatarError)
    assert "No space left" in str(error)
    assert "secret" not in str(error)
    assert source.ended.is_set()
    assert no_threads_left()
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert (finished.num_frames, finished.stopped, finished.error) == (36, True, str(error))
    assert len(coded_pictures(request.output)) == 36
    assert len(list(request.work.glob("*.mp4"))) == 2, "whole segments, which are perhaps being played"


def test_a_disk_that_stays_full_leaves_no_debris(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/secret/film.mp4")

    monkeypatch.setattr(atomic, "move", failing)
    request = ask(3)
    events, error = run(Source(), request)
    assert isinstance(error, NotPlaced)
    assert "No space left" in str(error)
    assert "secret" not in str(error)
    assert not of(Finished, events)
    assert not list(request.output.parent.iterdir())
    assert error.kept == (request.work / "whole.mp4",)
    assert len(coded_pictures(error.kept[0])) == 75
    assert pickle.loads(pickle.dumps(error)).kept == error.kept, "it crosses processes"


def test_a_report_that_cannot_be_written_costs_no_video(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/secret/film.report.json")

    monkeypatch.setattr(atomic, "write", failing)
    request = ask(3)
    events, error = run(Source(), request)
    assert isinstance(error, AvatarError)
    assert "its report cannot be written (No space left on device)" in str(error)
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert (finished.num_frames, finished.stopped) == (75, False)
    assert len(coded_pictures(request.output)) == 75


def test_a_stopped_run_on_a_full_disk_is_kept_in_its_work(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(source: Path, target: Path) -> None:
        raise OSError(errno.ENODEV, "No such device", "/secret/film.mp4")

    monkeypatch.setattr(atomic, "move", failing)
    request, stop = ask(4), threading.Event()
    events, error = run(Source(at=40, act=stop.set), request, cancelled=stop.is_set)
    assert isinstance(error, NotPlaced)
    assert len(coded_pictures(error.kept[0])) == 40
    assert not of(Finished, events)


def test_wrong_frames_are_an_error_and_do_not_hang(ask: Ask) -> None:
    class Wrong(Source):
        def frames(
            self, request: Request, cancelled: Callable[[], bool]
        ) -> Iterator[np.ndarray | Notice | Progress]:
            for _ in range(20):
                yield np.zeros((5, 64, 64, 3), np.float32)

    _, error = run(Wrong(), ask(4))
    assert isinstance(error, ValueError)
    assert no_threads_left()


def test_a_killed_run_is_finished_from_its_segments(ask: Ask) -> None:
    request = ask(4)
    events, _ = run(Source(), request)
    for path in request.output.parent.iterdir():
        path.unlink()
    (request.work / "whole.mp4").write_bytes(b"what the killed process was writing")
    died = WorkerLost("The engine died.")
    finished = finish_from_segments(request, of(Segment, events)[:2], died, label="test")
    assert finished is not None
    assert (finished.num_frames, finished.stopped, finished.error) == (36, True, "The engine died.")
    assert len(coded_pictures(request.output)) == 36
    assert abs(float(probe(request.output)["audio"]["duration"]) - 36 / 25) < 0.04
    report = read_report(finished.report)
    assert (report.width, report.height, report.engine, report.num_frames) == (96, 64, "test", 36)
    assert request.output.with_suffix(".thumb.jpg").is_file()


def test_segments_that_are_gone_cannot_be_joined(ask: Ask) -> None:
    request = ask(4)
    gone = Segment(request.work / "segment-00000.mp4", 0, 0, 25)
    assert finish_from_segments(request, [gone], WorkerLost("The engine died.")) is None
    assert not list(request.output.parent.iterdir())


@pytest.mark.parametrize("num_frames", [1, 5, 12, 25, 26, 49, 50, 51, 99, 103, 112, 113, 1000, 30_000])
@pytest.mark.parametrize("segment_s", [0.4, 1.0, 2.0, 5.0])
def test_segment_lengths(num_frames: int, segment_s: float) -> None:
    lengths = segment_lengths(num_frames, segment_s, 25)
    opening, regular = min(18, round(segment_s * 25)), round(segment_s * 25)
    assert sum(lengths) == num_frames
    assert lengths[:-1] == ([opening] * 2 + [regular] * len(lengths))[: len(lengths) - 1]
    assert lengths[-1] < regular + opening // 2
    assert len(lengths) == 1 or lengths[-1] >= opening // 2, "no crumb at the end"


@pytest.mark.slow
def test_memory_does_not_grow_in_six_minutes(ask: Ask) -> None:
    class Endless(Source):
        def frames(
            self, request: Request, cancelled: Callable[[], bool]
        ) -> Iterator[np.ndarray | Notice | Progress]:
            second = moving(25, 16, 16)  # how many there are is what counts
            yield from (second.copy() for _ in range(request.num_frames // 25))

    request = ask(6 * 60.0, segment_s=5.0)
    process, resident = psutil.Process(), {}
    for event in stream_frames(Endless(), request):
        if isinstance(event, Segment):
            event.path.unlink()
            minute = event.start_frame // 1500
            resident[minute] = max(resident.get(minute, 0), process.memory_info().rss)
    assert event.num_frames == 9000
    assert (resident[5] - resident[1]) / 2**20 < 12
    assert abs(float(probe(request.output)["audio"]["duration"]) - 360) < 0.04
    assert decode_sound_of_last_second(request.output) > 0.05, "sound to the end"


def decode_sound_of_last_second(path: Path) -> float:
    """RMS of the sound in the last second."""
    return float(np.sqrt(np.square(decode_sound(path)[0, -48_000:]).mean()))
