"""Long videos: parts, what they tell, what is refused, and that nothing is damaged by a refusal."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import queue
import threading
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from avatar.errors import AvatarError, BadInput, Cancelled
from avatar.events import Finished, Notice, PartDone, Phase, Progress, Segment
from avatar.geometry import BLOCK_FRAMES
from avatar.long import ledger as ledger_module
from avatar.long.ledger import LINES, PLAN
from avatar.long.splitting import Span, part_frames, quiet_spans, regular_spans
from avatar.media import atomic
from avatar.planning.plan import DevicePlan, MemoryItem, Plan
from avatar.preset import load_preset
from avatar.runtime.report import RUNG_OOM, GpuUse, MemoryUse, read_report
from avatar.runtime.stream import stream_frames
from tests.fixtures.sources import Coloured
from tests.long.runs import SELF_TEST, Here, inputs, job, make, packets, pictures

PREVIEW = load_preset("cpu-preview")
REAL = load_preset("80gb")


def of(kind: type, events: list) -> list:
    return [event for event in events if isinstance(event, kind)]


def digests(folder: Path) -> dict[str, str]:
    """Every file of a folder, by name, but for the lock."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.name != ".lock"
    }


def half_made(folder: Path, **more: object):
    """A job of six parts of which three are made."""
    one = job(folder, 6.0, resume=True, **more)
    with pytest.raises(AvatarError, match="lamp"):
        make(one, folder / "w", Coloured(fault="error", at=85))
    assert len((one.parts_folder / LINES).read_text().splitlines()) == 3
    return one


@pytest.mark.parametrize(
    ("preset", "every", "frames"),
    [(PREVIEW, 2, 50), (REAL, 1, 48), (REAL, 10, 480), (REAL.with_settings(infer_frames=32), 1, 36)],
)
def test_parts_are_seconds_of_the_preview_and_whole_blocks_of_clips(preset, every, frames):
    assert part_frames(preset, every) == frames
    spans = regular_spans(1000, preset, every)
    assert spans[0].first_frame == 0
    assert spans[-1].end_frame == 1000
    assert all(a.end_frame == b.first_frame for a, b in pairwise(spans))
    assert {span.num_frames for span in spans[1:-1]} == {frames}
    assert spans[0].num_frames == (frames if preset is PREVIEW else frames - 3)
    assert spans[-1].num_frames >= 25


def test_a_speech_of_one_part_has_one():
    assert regular_spans(30, PREVIEW, 60) == [Span(0, 30)]
    assert regular_spans(55, PREVIEW, 2) == [Span(0, 55)]  # a rest of 0.2 s is no part


def test_independent_parts_are_cut_where_it_is_silent(tmp_path):
    sound = np.random.default_rng(0).uniform(-0.3, 0.3, 16_000 * 12)
    for pause_s in (3.5, 7.2):
        at = round(pause_s * 16_000)
        sound[at - 6000 : at + 6000] = 0
    soundfile.write(tmp_path / "s.wav", np.repeat(sound, 3), 48_000, subtype="PCM_16")
    cuts = [span.first_frame / 25 for span in quiet_spans(300, PREVIEW, 4, tmp_path / "s.wav")][1:]
    assert cuts[:2] == pytest.approx([3.5, 7.2], abs=0.25)


def test_a_pause_in_noise_is_found_and_a_stop_consonant_is_none(tmp_path):
    """Room noise 20 dB below speech is a pause; a gap of 60 ms is deeper, and none."""
    random = np.random.default_rng(0)
    sound = random.uniform(-0.3, 0.3, 16_000 * 8)
    sound[55_000:68_000] = random.uniform(-0.03, 0.03, 13_000)  # 3.44 to 4.25 s
    sound[75_840:76_800] = 0  # 4.74 to 4.80 s, and 4.8 s is where a block ends
    soundfile.write(tmp_path / "s.wav", np.repeat(sound, 3), 48_000, subtype="PCM_16")
    cut = quiet_spans(200, PREVIEW, 4, tmp_path / "s.wav")[1].first_frame / 25
    assert 3.7 <= cut <= 4.0


def test_speech_without_a_pause_is_cut_where_a_part_ends(tmp_path):
    sound = np.random.default_rng(0).uniform(-0.3, 0.3, 48_000 * 8)
    soundfile.write(tmp_path / "s.wav", sound, 48_000, subtype="PCM_16")
    cut = quiet_spans(200, PREVIEW, 4, tmp_path / "s.wav")[1].first_frame
    assert abs(cut - 100) <= BLOCK_FRAMES / 2


def test_a_film_in_parts_is_the_film_and_tells_of_them(tmp_path):
    one = job(tmp_path, 6.0)
    events = make(one, tmp_path / "w", Coloured())
    parts, segments = of(PartDone, events), of(Segment, events)
    assert [part.index for part in parts] == list(range(6))
    assert [(part.start_frame, part.num_frames) for part in parts] == [(25 * n, 25) for n in range(6)]
    ends = [segment.start_frame + segment.num_frames for segment in segments]
    assert [segment.start_frame for segment in segments] == [0, *ends[:-1]]
    assert [segment.index for segment in segments] == list(range(len(segments)))
    progress = of(Progress, events)
    assert (progress[-1].frames_done, progress[-1].parts_done, progress[-1].num_parts) == (150, 6, 6)
    assert progress[-1].segments_done == progress[-1].num_segments == len(segments)
    done = [event.frames_done for event in progress]
    assert done == sorted(done)
    assert {event.phase for event in progress[1:]} >= {Phase.GENERATING}
    finished = events[-1]
    assert finished == Finished(one.output, one.output.with_suffix(".report.json"), 150, 6.0)
    assert not one.parts_folder.exists()
    assert sorted(path.name for path in tmp_path.glob("film.*")) == [
        "film.mp4",
        "film.report.json",
        "film.thumb.jpg",
    ]
    make(replace(one, output=tmp_path / "one.mp4", checkpoint_every=None), tmp_path / "w2", Coloured())
    assert len(pictures(one.output)) == len(pictures(tmp_path / "one.mp4")) == 150
    assert np.abs(pictures(one.output).astype(int) - pictures(tmp_path / "one.mp4")).max() <= 8
    report = read_report(one.output.with_suffix(".report.json"))
    assert (report.engine, report.num_frames, report.width, report.stopped) == ("coloured", 150, 64, False)


def test_the_films_report_has_its_parts_peaks_and_rungs(tmp_path):
    class Lowered(Coloured):
        def frames(self, request, cancelled):
            for item in super().frames(request, cancelled):
                yield item
                if request.first_frame == 50 and not isinstance(item, Progress):
                    yield Notice(RUNG_OOM, "Full.", "warning", rung=f"rung {self.taken}")
                    self.taken += 1

        taken = 0

    class Measured(Here):
        def stream(self, request):
            part = request.first_frame // 25
            use = MemoryUse((GpuUse(0, "A", [7, 3, 9, 4][part], None, 10),), 100 + part, None, None)
            gpu = DevicePlan("GPU 0", 0, (MemoryItem("weights", 8 - part),), 10, 10)
            host = DevicePlan("host", None, (MemoryItem("weights", 5),), 100, 100)
            plan = Plan("80gb", "diffusion", (gpu,), host)
            yield from stream_frames(self.source, request, plan=lambda: plan, use=lambda: use)

    one = job(tmp_path, 4.0)
    (tmp_path / "w").mkdir()
    with one.opened(tmp_path / "w") as opened:
        list(opened.engine([Measured(Lowered())]).stream(opened.request))
    report = read_report(one.output.with_suffix(".report.json"))
    assert report.gpus == [GpuUse(0, "A", 9, None, 10, 8)], "the plan is that of the beginning"
    assert (report.memory.host_peak_bytes, report.memory.pinned_peak_bytes) == (103, None)
    assert [(taken.rung, taken.frame) for taken in report.rungs[:2]] == [("rung 0", 51), ("rung 1", 52)]
    assert report.out_of_memory


def test_what_is_there_is_not_made_again(tmp_path):
    one = half_made(tmp_path)
    report = read_report(one.output.with_suffix(".report.json"))
    assert report.stopped
    assert report.num_frames >= 75
    with av.open(str(one.output)) as film:  # what was made can be watched
        assert film.streams.video[0].frames == report.num_frames
    (tmp_path / "w2").mkdir()
    engine = Here(Coloured())
    with one.opened(tmp_path / "w2") as opened:
        events = list(opened.engine([engine]).stream(opened.request))
    assert [request.first_frame for request in engine.asked] == [75, 100, 125]
    (notice,) = (notice for notice in of(Notice, events) if notice.code != "smaller_video")
    assert (notice.code, notice.values) == ("resumed", {"done": 3, "total": 6})
    whole = replace(one, output=tmp_path / "whole.mp4")
    make(whole, tmp_path / "w3", Coloured())
    assert packets(one.output) == packets(whole.output)


def test_a_finished_film_is_not_made_again(tmp_path):
    one = job(tmp_path, resume=True)
    make(one, tmp_path / "w", Coloured())
    with one.opened(tmp_path / "w") as opened:
        assert opened.finished == one.output
    soundfile.write(one.audio, np.random.default_rng(0).uniform(-0.1, 0.1, 48_000), 16_000)
    with pytest.raises(BadInput, match="the speech is another"), one.opened(tmp_path / "w"):
        pass


def test_without_resume_a_half_made_film_is_left_alone(tmp_path):
    one = half_made(tmp_path)
    before = digests(one.parts_folder)
    for again in (replace(one, resume=False), replace(one, resume=False, checkpoint_every=None)):
        with pytest.raises(BadInput, match="--resume"), again.opened(tmp_path / "w2"):
            pass
    assert digests(one.parts_folder) == before


def other_speech(one, folder):
    soundfile.write(one.audio, np.random.default_rng(0).uniform(-0.1, 0.1, 16_000 * 6), 16_000)
    return one


def other_portrait(one, folder):
    inputs(folder, 6.0, width=98)
    return one


CHANGES = [
    (other_speech, "the speech is another"),
    (other_portrait, "the portrait is another"),
    (lambda one, _: replace(one, preset=PREVIEW.with_settings(seed=7)), "settings are others"),
    (lambda one, _: replace(one, preset=SELF_TEST), "settings are others"),
    (lambda one, _: replace(one, head_only=True), "head_only"),
    (lambda one, _: replace(one, checkpoint_every=2), "--checkpoint_every"),
    (lambda one, _: replace(one, independent=True), "--independent"),
]


@pytest.mark.parametrize(("change", "words"), CHANGES)
def test_a_film_is_resumed_only_with_what_it_was_begun_with(tmp_path, change, words):
    one = half_made(tmp_path)
    before = digests(one.parts_folder)
    changed = change(one, tmp_path)
    with pytest.raises(BadInput, match=words) as caught, changed.opened(tmp_path / "w2"):
        pass
    assert str(tmp_path) not in str(caught.value)
    assert digests(one.parts_folder) == before
    inputs(tmp_path, 6.0)
    make(one, tmp_path / "w3", Coloured())
    assert len(pictures(one.output)) == 150


@pytest.mark.parametrize("name", [PLAN, LINES, "part_00001.mp4"])
def test_a_damaged_folder_is_reported_and_left_as_it_is(tmp_path, name):
    one = half_made(tmp_path)
    (one.parts_folder / name).write_bytes(b"rust\nrust\n")
    before = digests(one.parts_folder)
    with pytest.raises(BadInput, match=name), one.opened(tmp_path / "w2"):
        pass
    assert digests(one.parts_folder) == before


def test_one_process_at_a_time(tmp_path):
    one = half_made(tmp_path)
    with (one.parts_folder / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(BadInput, match="Another process"), one.opened(tmp_path / "w2"):
            pass
    make(one, tmp_path / "w3", Coloured())


def test_a_disk_that_is_full_damages_nothing(tmp_path, monkeypatch):
    one = job(tmp_path, resume=True)
    append = ledger_module.Ledger._append

    def full(ledger, line):
        if line.part == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(ledger, line)

    monkeypatch.setattr(ledger_module.Ledger, "_append", full)
    with pytest.raises(AvatarError, match=r"cannot be written \(No space left on device\)"):
        make(one, tmp_path / "w", Coloured())
    monkeypatch.undo()
    make(one, tmp_path / "w", Coloured())
    whole = replace(one, output=tmp_path / "whole.mp4")
    make(whole, tmp_path / "w3", Coloured())
    assert packets(one.output) == packets(whole.output)


def test_a_full_disk_at_the_joining_keeps_the_parts(tmp_path, monkeypatch):
    one = job(tmp_path, resume=True)
    replaced = atomic.replace

    def full(path, target):
        if target == one.output:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replaced(path, target)

    monkeypatch.setattr(atomic, "replace", full)
    with pytest.raises(AvatarError, match="No space left"):
        make(one, tmp_path / "w", Coloured())
    assert not one.output.exists()
    assert len((one.parts_folder / LINES).read_text().splitlines()) == 6
    assert not list(tmp_path.glob(".film*"))
    monkeypatch.undo()
    make(one, tmp_path / "w", Coloured(fault="error", at=0))  # nothing is asked of the engine
    assert len(pictures(one.output)) == 150


def test_a_folder_that_cannot_be_written_is_reported(tmp_path):
    one = job(tmp_path)
    one.parts_folder.write_text("in the way")
    with pytest.raises(BadInput, match=r"film.parts cannot be written") as caught, one.opened(tmp_path / "w"):
        pass
    assert str(tmp_path) not in str(caught.value)
    assert one.parts_folder.read_text() == "in the way"


@pytest.mark.parametrize("more", [{"independent": True}, {"keep_parts": True}])
def test_what_is_for_parts_alone_is_refused_without_them(tmp_path, more):
    with (
        pytest.raises(BadInput, match="checkpoint_every"),
        job(tmp_path, checkpoint_every=None, **more).opened(tmp_path / "w"),
    ):
        pass


def test_parts_must_have_a_length(tmp_path):
    with pytest.raises(BadInput, match="1 or more"), job(tmp_path, checkpoint_every=0).opened(tmp_path / "w"):
        pass


def test_cancelled_between_two_parts_it_stops_and_keeps(tmp_path):
    one = job(tmp_path, resume=True)
    (tmp_path / "w").mkdir()
    with one.opened(tmp_path / "w") as opened:
        engine = opened.engine([Here(Coloured(frame_s=0.002))])
        events = []
        for event in engine.stream(opened.request):
            events.append(event)
            if isinstance(event, PartDone) and event.index == 1:
                engine.cancel()
    finished = events[-1]
    assert finished.stopped
    assert finished.error is None
    assert 50 <= finished.num_frames < 150
    make(one, tmp_path / "w2", Coloured())
    assert len(pictures(one.output)) == 150


def test_cancelled_before_the_first_frame_there_is_nothing(tmp_path):
    one = job(tmp_path)
    (tmp_path / "w").mkdir()
    with one.opened(tmp_path / "w") as opened:
        engine = opened.engine([Here(Coloured())])
        engine.cancel()
        with pytest.raises(Cancelled):
            list(engine.stream(opened.request))


def test_closing_the_iterator_stops_all(tmp_path):
    one = job(tmp_path, resume=True)
    (tmp_path / "w").mkdir()
    with one.opened(tmp_path / "w") as opened:
        stream = opened.engine([Here(Coloured(frame_s=0.002))]).stream(opened.request)
        next(event for event in stream if isinstance(event, Segment))
        stream.close()
    assert "parts" not in {thread.name for thread in threading.enumerate()}


def test_parts_that_need_not_know_each_other_are_made_at_once(tmp_path):
    one = job(tmp_path)
    (tmp_path / "w").mkdir()
    meet = threading.Barrier(2, timeout=30)

    class Meeting(Coloured):
        def frames(self, request, cancelled):
            if request.first_frame < 50:
                meet.wait()
            yield from super().frames(request, cancelled)

    with one.opened(tmp_path / "w") as opened:
        engines = [Here(Meeting()), Here(Meeting())]
        events = list(opened.engine(engines).stream(opened.request))
    assert events[-1].num_frames == 150
    make(replace(one, output=tmp_path / "whole.mp4"), tmp_path / "w2", Coloured())
    assert packets(one.output) == packets(tmp_path / "whole.mp4")


def test_engines_may_be_more_than_the_parts_that_are_left(tmp_path, monkeypatch):
    class Crowded(queue.SimpleQueue):
        def empty(self) -> bool:  # as the loser of a race sees it
            return False

    monkeypatch.setattr(queue, "SimpleQueue", Crowded)
    one = job(tmp_path)
    (tmp_path / "w").mkdir()
    with one.opened(tmp_path / "w") as opened:
        events = list(opened.engine([Here(Coloured()) for _ in range(8)]).stream(opened.request))
    assert events[-1].num_frames == 150


def test_nobody_elses_files_are_touched(tmp_path):
    one = job(tmp_path)
    one.parts_folder.mkdir()
    (one.parts_folder / "notes.txt").write_text("mine")
    (one.parts_folder / "photos").mkdir()
    make(one, tmp_path / "w", Coloured())
    assert sorted(path.name for path in one.parts_folder.iterdir()) == ["notes.txt", "photos"]


def test_kept_parts_are_left_without_a_ledger(tmp_path):
    one = job(tmp_path, keep_parts=True, resume=True)
    make(one, tmp_path / "w", Coloured())
    names = {path.name for path in one.parts_folder.iterdir()}
    assert names == {f"part_0000{n}.{kind}" for n in range(6) for kind in ("mp4", "thumb.jpg", "report.json")}
    with one.opened(tmp_path / "w2") as opened:
        assert opened.finished == one.output
