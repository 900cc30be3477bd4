"""The preview engine without an end: bounded, flat, the same at any pace, and faster than it is spoken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from pictures import portrait as portrait_of
from PIL import Image

from avatar.events import Notice
from avatar.geometry import FPS, SOUND_HZ, Size
from avatar.live.portrait_intake import live_preset, open_live_request
from avatar.media.face_choice import idle_faces
from avatar.media.portrait import read_portrait
from avatar.media.speech_reader import SpeechReader, write_speech
from avatar.media.timeline import SAMPLES_PER_FRAME, Timeline
from avatar.preview import live
from avatar.preview.face_detection import Face, find_face, find_faces
from avatar.preview.face_finder import Finder
from avatar.preview.live import LATE_FRAMES, LOST_FRAMES, LiveRenderer, animate_live
from avatar.preview.live_mouth import LOOK_AHEAD_FRAMES, LiveMouth
from avatar.preview.source import PreviewSource, others_by_size
from avatar.preview.topology import LOWER_LIP_OUTER, UPPER_LIP_OUTER
from avatar.preview.visemes import VisemeNetwork
from avatar.runtime.live_protocol import LiveFrames
from avatar.settings import Picture

ROOT = Path(__file__).parents[2]
NETWORK = VisemeNetwork.load()
HOUR_FRAMES = 3600 * FPS


@pytest.fixture(scope="module")
def portrait():
    image = read_portrait(ROOT / "assets" / "portraits" / "mara.png")
    return image, find_face(image).face


@pytest.fixture
def renderer(portrait):
    return LiveRenderer(*portrait, Size(128, 128))


class Sticks:
    """Stands for the renderer, which keeps nothing, where an hour is to pass."""

    num_idle = 0

    def __init__(self) -> None:
        self.poses: list[object] = []

    def frame(self, articulation, pose, idle):
        self.poses = [articulation, pose]
        return np.zeros((2, 2, 3), np.uint8)

    def last(self):
        return np.zeros((2, 2, 3), np.uint8)

    def step_down(self):
        return None


def tone(num_frames: int) -> np.ndarray:
    places = np.arange(num_frames * SAMPLES_PER_FRAME)
    syllables = np.sin(2 * np.pi * 3 * places / SOUND_HZ) > 0
    return (8000 * syllables * np.sin(2 * np.pi * 150 * places / SOUND_HZ)).astype(np.int16)


def made(renderer, pieces, **options):
    return [
        one
        for one in animate_live(renderer, iter(pieces), lambda: False, network=NETWORK, **options)
        if isinstance(one, LiveFrames)
    ]


def in_pieces(sound: np.ndarray, size: int) -> list[np.ndarray]:
    return np.split(sound, range(size, len(sound), size))


def test_each_frame_comes_with_its_own_samples(renderer):
    sound = tone(40)
    frames = made(renderer, in_pieces(sound, SAMPLES_PER_FRAME))
    assert [one.first_frame for one in frames] == list(range(40 - LOOK_AHEAD_FRAMES + 1))
    heard = np.concatenate([one.sound for one in frames])
    assert np.array_equal(heard, sound[: len(heard)])
    assert {one.frames.shape for one in frames} == {(1, *renderer.last().shape)}


def test_the_same_seed_and_sound_give_the_same_pictures(portrait):
    sound = tone(30)
    runs = [
        made(LiveRenderer(*portrait, Size(128, 128)), in_pieces(sound, size), seed=seed, may_skip=False)
        for size, seed in ((SAMPLES_PER_FRAME, 1), (5000, 1), (SAMPLES_PER_FRAME, 2))
    ]
    first, again, other = ([one.frames for one in run] for run in runs)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=False))
    assert len(again) == len(first)
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_silence_breathes_blinks_and_looks_about():
    poses = []

    class Noting(Sticks):
        def frame(self, articulation, pose, idle):
            poses.append((articulation, pose))
            return super().frame(articulation, pose, idle)

    made(Noting(), [np.zeros(SAMPLES_PER_FRAME, np.int16)] * (30 * FPS))
    mouths, moved = zip(*poses, strict=True)
    assert max(mouth.open for mouth in mouths) < 0.01
    for name in ("breath", "blink", "gaze_x", "yaw"):
        values = [getattr(pose, name) for pose in moved]
        assert max(values) - min(values) > 0.02, name
    assert sum(pose.blink > 0.9 for pose in moved) >= 4


@pytest.mark.slow
def test_an_hour_keeps_memory_delay_and_lips_in_step(tmp_path):
    """An hour, a tenth of it spoken: what is held is counted, and so is the delay."""
    write_speech(ROOT / "assets" / "speech" / "hello-en.flac", tmp_path / "speech.wav")
    with SpeechReader(tmp_path / "speech.wav") as reader:
        spoken = reader.samples(0, 250 * SAMPLES_PER_FRAME)[:, 0]
    silent = np.zeros(250 * SAMPLES_PER_FRAME, np.int16)
    timeline = Timeline()
    mouth = LiveMouth(timeline, NETWORK)
    held, behind, openings = [], [], []
    process = psutil.Process()
    rss = 0
    for second in range(0, HOUR_FRAMES // FPS, 10):
        timeline.append(silent if second % 100 else spoken)
        mouth_at = timeline.num_samples // SAMPLES_PER_FRAME
        while mouth.is_ready:
            openings.append(mouth.next().articulation.open)
        behind.append(mouth_at - mouth.num_frames)
        arrays = [value for value in vars(mouth).values() if isinstance(value, np.ndarray)]
        held.append(timeline.num_held + sum(value.size for value in arrays))
        rss = rss or (process.memory_info().rss if second >= 300 else 0)
    assert mouth.num_frames == HOUR_FRAMES - LOOK_AHEAD_FRAMES + 1
    assert set(behind) == {LOOK_AHEAD_FRAMES - 1}
    assert len(set(held)) == 1
    assert process.memory_info().rss - rss < 50e6
    period = 100 * FPS
    late, early = (np.array(openings[start:][: 10 * FPS]) for start in (35 * period, 17 * period))
    assert early.max() > 0.5
    assert np.abs(late - early).max() < 0.02  # the same sound, an hour later


def test_late_frames_repeat_a_picture_and_keep_all_sound():
    drawn = []

    class Noting(Sticks):
        def frame(self, articulation, pose, idle):
            drawn.append(pose)
            return super().frame(articulation, pose, idle)

    sound = tone(LOST_FRAMES)
    frames = made(Noting(), [sound])
    assert np.array_equal(np.concatenate([one.sound for one in frames]), sound[: len(frames) * 1920])
    assert len(frames) == LOST_FRAMES - LOOK_AHEAD_FRAMES + 1
    assert len(drawn) == LATE_FRAMES


def test_what_is_a_second_late_is_left_out_with_its_sound():
    sound = tone(100)
    frames = made(Sticks(), [sound])
    numbers = [one.first_frame for one in frames]
    assert len(numbers) == LOST_FRAMES
    assert numbers == list(range(numbers[0], 100 - LOOK_AHEAD_FRAMES + 1))
    first = numbers[0] * SAMPLES_PER_FRAME
    assert np.array_equal(np.concatenate([one.sound for one in frames]), sound[first:][: LOST_FRAMES * 1920])


def mouth_of(face: Face) -> tuple[slice, slice]:
    lips = face.landmarks[[*UPPER_LIP_OUTER, *LOWER_LIP_OUTER], :2]
    (left, top), (right, bottom) = lips.min(0).astype(int), lips.max(0).astype(int) + 1
    return slice(top, bottom + (bottom - top) // 2), slice(left, right)


def session(tmp_path: Path, *names: str, face: str = "") -> tuple[list[Notice], np.ndarray, np.ndarray]:
    """What a session of eight seconds says and shows of people side by side, and its portrait."""
    pair = [Image.fromarray(portrait_of(name)).resize((256, 256)) for name in names]
    Image.fromarray(np.concatenate([np.asarray(one) for one in pair], axis=1)).save(tmp_path / "us.png")
    request = open_live_request(
        tmp_path / "us.png",
        live_preset("live-preview").with_settings(size="512*256"),
        tmp_path,
        picture_settings=Picture(face=face),
        finder=Finder(),
    )
    request = replace(request, may_skip=False)
    found = list(PreviewSource().live(request, iter(in_pieces(tone(200), 4 * 1920)), lambda: False))
    notices = [one for one in found if isinstance(one, Notice) and one.code != "live_size"]
    frames = np.concatenate([one.frames for one in found if isinstance(one, LiveFrames)])
    return notices, frames, read_portrait(request.portrait)


def test_the_chosen_face_speaks_and_the_others_idle(tmp_path):
    for number, spoken in (("1", 0), ("2", 1)):
        notices, frames, image = session(tmp_path, "astronaut", "mara", face=number)
        assert [one.code for one in notices] == ["face_chosen", "idle_faces"]
        assert notices[1].text == "The other face in us.png blinks and breathes."
        changes = np.abs(np.diff(frames.astype(np.int16), axis=0))
        faces = find_faces(image).faces
        mouths = [changes[(slice(None), *mouth_of(face))].mean() for face in faces]
        assert mouths[spoken] > 3 * mouths[1 - spoken]
        halves = [changes[:, :, :256], changes[:, :, 256:]]
        assert halves[1 - spoken].max() > 40  # eyelids, or the head's edge
        still = halves[1 - spoken].max(axis=(1, 2, 3)) == 0
        assert still.mean() < 0.2


def test_a_single_face_is_told_of_no_others(tmp_path):
    notices, _, _ = session(tmp_path, "astronaut")
    assert [one.code for one in notices] == []


def test_of_many_faces_the_largest_idle():
    assert [one.text for one in idle_faces(5, 3, "us.png")] == [
        "3 of the other 5 faces in us.png blink and breathe; the smallest stay still."
    ]
    assert idle_faces(2, 3, "us.png")[0].text == "The other 2 faces in us.png blink and breathe."
    assert idle_faces(0, 3, "us.png") == []
    crowd = np.full((256, 640, 3), 120, np.uint8)
    for name, left, side in (("astronaut", 0, 128), ("mara", 128, 256), ("astronaut", 384, 256)):
        crowd[:side, left : left + side] = np.asarray(Image.fromarray(portrait_of(name)).resize((side, side)))
    faces = find_faces(crowd)
    small, middle, large = faces.faces
    assert [one.box for one in others_by_size(faces, middle)] == [large.box, small.box]


def test_a_slow_machine_draws_smaller_and_says_so(renderer, monkeypatch, portrait):
    drawn = LiveRenderer(*portrait, Size(704, 704))
    shape = drawn.last().shape
    clock = iter(range(10_000))
    monkeypatch.setattr(live.time, "perf_counter", lambda: next(clock) * 0.05)  # each frame takes 50 ms
    out = list(animate_live(drawn, iter([tone(1)] * 60), lambda: False, network=NETWORK))
    reported = [one for one in out if isinstance(one, Notice)]
    assert [one.code for one in reported] == ["live_size"]
    assert reported[0].values["size"] == "576*576"
    assert {one.frames.shape[1:] for one in out if isinstance(one, LiveFrames)} == {shape}


def test_a_quick_machine_keeps_its_size(renderer):
    out = list(animate_live(renderer, iter([tone(1)] * 60), lambda: False, network=NETWORK))
    assert not [one for one in out if isinstance(one, Notice)]
