"""The diffusion engine without an end, on the tiny checkpoint: blocks as soon as their sound is there."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from avatar.errors import Cancelled
from avatar.events import Notice, Phase, Progress
from avatar.geometry import BLOCK_FRAMES, FPS, LEAD_IN_FRAMES, SOUND_HZ, Size
from avatar.media.intake import open_request
from avatar.media.sample_inputs import write_sample
from avatar.media.timeline import SAMPLES_PER_FRAME
from avatar.model.live_wav2vec2 import LOOK_AHEAD_S
from avatar.pipeline import live
from avatar.pipeline.live import LiveTrack, lighter, live_frames
from avatar.pipeline.pipeline import DiffusionPipeline
from avatar.preset import load_preset
from avatar.request import LiveRequest
from avatar.runtime.live_protocol import LiveFrames

PRESET = load_preset("self-test")
BLOCK = BLOCK_FRAMES * SAMPLES_PER_FRAME


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Path) -> DiffusionPipeline:
    return DiffusionPipeline(PRESET, tiny_checkpoint)


@pytest.fixture
def request_(tmp_path: Path) -> LiveRequest:
    portrait, speech = write_sample(tmp_path, Size(96, 96), 1.0)
    work = tmp_path / "work"
    whole = open_request(portrait, speech, PRESET, output=tmp_path / "out.mp4", work=work, prompt="a fox")
    return LiveRequest(whole.portrait, work, PRESET, "portrait.png", prompt="a fox")


def unused(preset) -> None:
    raise AssertionError(f"{preset.name} is lighter than needed")


class Microphone:
    """Sound that comes when the test says so; it ends with None."""

    def __init__(self) -> None:
        self._waiting: queue.Queue[np.ndarray | None] = queue.Queue()
        self.num_spoken = 0

    def speak(self, num_samples: int) -> None:
        index = np.arange(self.num_spoken, self.num_spoken + num_samples)
        self.num_spoken += num_samples
        self._waiting.put((6000 * np.sin(index * 0.02) * np.sin(index * 2e-4)).astype(np.int16))

    def end(self) -> None:
        self._waiting.put(None)

    def __iter__(self) -> Iterator[np.ndarray]:
        while (piece := self._waiting.get()) is not None:
            yield piece


def frames_of(engine, request, microphone) -> Iterator[LiveFrames]:
    said = engine.live(request, iter(microphone), lambda: False)
    return (one for one in said if isinstance(one, LiveFrames))


def test_a_block_goes_as_soon_as_its_sound_and_look_ahead_are_there(engine, request_):
    microphone = Microphone()
    found = frames_of(engine, request_, microphone)
    first = BLOCK_FRAMES - LEAD_IN_FRAMES
    microphone.speak(
        first * SAMPLES_PER_FRAME + round(LOOK_AHEAD_S * SOUND_HZ) + 48
    )  # and the filter's reach
    one = next(found)
    assert (one.first_frame, len(one.frames)) == (0, first)
    for block in range(3):
        microphone.speak(BLOCK)
        one = next(found)
        assert (one.first_frame, len(one.frames)) == (first + BLOCK_FRAMES * block, BLOCK_FRAMES)
        assert len(one.sound) == BLOCK
    microphone.end()
    with pytest.raises(Cancelled):
        next(found)


def test_the_pace_of_the_sound_changes_no_pixel(engine, request_):
    videos = []
    for piece in (480, SAMPLES_PER_FRAME, 3 * SOUND_HZ):
        microphone = Microphone()
        while microphone.num_spoken < 3 * SOUND_HZ:
            microphone.speak(piece)
        microphone.end()
        found: list[LiveFrames] = []
        with pytest.raises(Cancelled):
            found.extend(frames_of(engine, request_, microphone))
        videos.append(np.concatenate([one.frames for one in found]))
    assert len(videos[0]) >= 2.2 * FPS
    assert videos[0].std() > 5
    for other in videos[1:]:
        assert np.array_equal(videos[0], other[: len(videos[0])])


def test_phases_come_before_the_first_frame(engine, request_):
    microphone = Microphone()
    microphone.speak(SOUND_HZ)
    said = engine.live(request_, iter(microphone), lambda: False)
    phases = [next(said).phase for _ in range(3)]
    assert phases == [Phase.LOADING, Phase.ENCODING, Phase.GENERATING]
    assert isinstance(next(said), LiveFrames)
    said.close()
    microphone.end()


def test_a_cancelled_session_ends_while_nobody_speaks(engine, request_):
    microphone, calls = Microphone(), []
    said = engine.live(request_, iter(microphone), lambda: calls.append(1) or len(calls) > 20)
    with pytest.raises(Cancelled):
        list(said)
    microphone.end()


def test_a_slow_machine_takes_fewer_steps_then_goes_on(engine, request_, monkeypatch):
    monkeypatch.setattr(live, "HELD_SHARE", 0.0)  # nothing is quick enough
    microphone = Microphone()
    for _ in range(60):
        microphone.speak(BLOCK // 4)
    request = LiveRequest(**{**vars(request_), "preset": PRESET.with_settings(sample_steps=3)})
    monkeypatch.setattr(live, "MOST_BEHIND_S", 100.0)
    frames, notices, last = 0, [], 0
    for one in engine.live(request, iter(microphone), lambda: False):
        if isinstance(one, LiveFrames):
            assert one.first_frame == frames  # none is lost or made twice
            frames += len(one.frames)
            last += 1
        elif isinstance(one, Notice):
            notices.append(one.code)
        if frames >= 9 * BLOCK_FRAMES:
            break
    assert notices == ["live_lighter"]  # to two steps; the picture is the smallest already
    microphone.end()


def test_blocks_in_progress_at_a_time_count_from_the_last_ones_end():
    """Three blocks whose sound is there at once, of 0.3 s each, then two of 0.6 s that begin 0.4 s apart."""
    times = iter([0.0, *[1.0] * 3, 1.3, 1.6, 1.9, 2.0, 2.4, 2.6, 3.0])
    pace = live.BlockPace(lambda: next(times))
    for _ in range(3):
        pace.begins()
    assert [pace.ends() for _ in range(3)] == [None] * 3
    for _ in range(2):
        pace.begins()
    assert pace.ends() is None
    assert pace.ends() == pytest.approx((0.3 + 0.3 + 0.6 + 0.4) / 4)


def test_steps_go_before_sizes():
    preset = load_preset("self-test").with_settings(size="704*384", sample_steps=4)
    names = [name for name, _ in lighter(preset)]
    assert names == ["3 steps", "2 steps", "512*320", "384*256"]
    *_, (_, last) = lighter(preset)
    assert (last.generation.sample_steps, last.generation.size) == (2, "384*256")


def test_where_nothing_is_lighter_it_is_said_once(monkeypatch):
    monkeypatch.setattr(live, "MOST_BEHIND_S", 100.0)
    blocks = iter(range(100))
    clock = iter(range(1000))
    microphone = Microphone()
    for _ in range(20):
        microphone.speak(BLOCK)
    track = LiveTrack(iter(microphone), lambda: False)
    request = live.as_request(LiveRequest(Path(), Path(), PRESET, ""))

    def make(_):
        for _ in zip(range(12), blocks, strict=False):
            track.on_heard()
            yield np.zeros((BLOCK_FRAMES, 2, 2, 3), np.uint8)

    while track._timeline.num_samples < 12 * BLOCK:
        pass
    said = list(live_frames(request, track, make, unused, clock=lambda: float(next(clock))))
    assert [one.code for one in said if isinstance(one, Notice)] == ["live_behind"]
    assert len([one for one in said if isinstance(one, LiveFrames)]) == 12
    microphone.end()


def test_sound_that_a_slow_engine_cannot_follow_is_left_out():
    microphone = Microphone()
    for _ in range(100):
        microphone.speak(SOUND_HZ)
    microphone.end()
    track = LiveTrack(iter(microphone), lambda: False)
    with pytest.raises(Cancelled):
        track.features(Unheard()).frames(200 * FPS, 1)
    assert track.num_left_out(200 * FPS) >= 95 * SOUND_HZ
    assert track._timeline.num_samples <= 6 * SOUND_HZ


def test_an_engine_that_is_behind_leaves_out_silence_before_speech():
    speech = np.full(SAMPLES_PER_FRAME, 5000, np.int16)
    silence = np.full(SAMPLES_PER_FRAME, 30, np.int16)
    given = [speech] * 50 + [silence] * 25 + [speech] * 10 + [silence] * 25
    track = LiveTrack(iter([np.concatenate(given)]), lambda: False)  # 4.4 s, while nothing is taken
    with pytest.raises(Cancelled):
        track.features(Unheard()).frames(200 * FPS, 1)
    assert np.array_equal(track.sound(0, 60), np.concatenate([speech] * 60))
    assert track._timeline.num_samples == 60 * SAMPLES_PER_FRAME
    assert [track.num_left_out(frame) for frame in (49, 50, 59, 60)] == [
        count * SAMPLES_PER_FRAME for count in (0, 25, 25, 50)
    ]


def test_an_engine_that_keeps_up_leaves_nothing_out():
    silence = np.zeros(round(live.USUAL_WAIT_S * FPS) * SAMPLES_PER_FRAME, np.int16)
    track = LiveTrack(iter([silence]), lambda: False)
    with pytest.raises(Cancelled):
        track.features(Unheard()).frames(200 * FPS, 1)
    assert (track._timeline.num_samples, track.num_left_out(0)) == (len(silence), 0)


def test_the_next_session_starts_with_what_the_machine_kept_up_with(tiny_checkpoint, request_, monkeypatch):
    engine = DiffusionPipeline(PRESET, tiny_checkpoint)
    request = LiveRequest(**{**vars(request_), "preset": PRESET.with_settings(sample_steps=3)})
    monkeypatch.setattr(live, "MOST_BEHIND_S", 100.0)
    notices: list[Notice] = []
    for held_share in (0.0, 100.0):  # nothing is quick enough, then everything
        monkeypatch.setattr(live, "HELD_SHARE", held_share)
        microphone = Microphone()
        microphone.speak(10 * BLOCK)
        microphone.end()
        said = engine.live(request, iter(microphone), lambda: False)
        with pytest.raises(Cancelled):
            notices.extend(one for one in said if isinstance(one, Notice))
    assert [(one.code, one.values.get("steps")) for one in notices] == [
        ("live_lighter", None),
        ("live_starts_lighter", 2),
    ]


class Unheard:
    """An encoder that is never asked."""

    normalise = True


def test_progress_is_passed_on():
    microphone = Microphone()
    track = LiveTrack(iter(microphone), lambda: False)
    request = live.as_request(LiveRequest(Path(), Path(), PRESET, ""))
    loading = Progress(Phase.LOADING)
    assert list(live_frames(request, track, lambda _: (one for one in [loading]), unused)) == [loading]
    microphone.end()
