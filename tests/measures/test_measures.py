"""Each measure sees what was done to a film, by how much, and stays quiet where nothing was done."""

from __future__ import annotations

import math

import numpy as np
import pytest

from avatar.geometry import FPS
from avatar.measures.face_track import FaceTrack
from avatar.measures.identity import likeness
from avatar.measures.lip_sync import lip_sync
from avatar.measures.liveliness import blink_lengths, expression, naturalness
from avatar.measures.measure import judge
from avatar.measures.pose import split
from avatar.measures.seams import clip_borders, smoothness
from avatar.preview.models import FACE_TEMPLATE
from avatar.preview.pose import Articulation, Pose
from tests.measures import films

BORDERS = clip_borders(films.LENGTH_S * FPS, films.CLIP)


@pytest.mark.slow
@pytest.mark.parametrize("later_ms", [0, -200, -80, -40, 40, 80, 200])
def test_sound_that_is_shifted_is_off_by_as_much(later_ms):
    found = lip_sync(films.untouched(), films.heard(films.speech(), later_ms))
    assert found.offset_ms == pytest.approx(later_ms, abs=15)
    assert found.confidence > 0.5


@pytest.mark.parametrize("later_ms", [0, -80, 120])
def test_sounds_known_by_their_phonemes_are_in_time(later_ms):
    found = lip_sync(films.sentences(), films.heard(films.read_aloud()[1], later_ms))
    assert found.offset_ms == pytest.approx(later_ms, abs=25)
    assert found.closures >= 8
    assert found.closure_recall > 0.8
    assert found.closure_recall > found.closure_chance


def test_another_sound_than_the_mouths_gives_no_offset():
    other = films.read_aloud()[1]
    found = lip_sync(films.untouched(), films.heard(other))
    assert found.offset_ms is None
    assert found.confidence < 0.25
    assert found.why


def test_a_mouth_that_never_shuts_misses_the_closures():
    frames = films.acted(lambda t: Articulation(open=0.5 + 0.3 * math.sin(9 * t)), films.LENGTH_S / 2)
    found = lip_sync(films.watched(frames), films.heard(films.speech()))
    assert found.closures > 2
    assert found.closure_recall == 0


def test_a_still_mouth_and_silence_are_distinguished():
    still = films.watched([films.renderer().image] * 60)
    assert lip_sync(still, films.heard(films.speech())).why == "the mouth does not move"
    silence = np.zeros(16_000 * 8, np.float32)
    assert lip_sync(films.untouched(), films.heard(silence)).why == "there is too little speech"


def test_no_face_gives_no_measure_and_no_error():
    found = judge(films.watched([np.full((64, 64, 3), 99, np.uint8)] * 12), films.heard(films.speech()), [6])
    assert found.face_share == 0
    assert {found.lip_sync.why, found.naturalness.why, found.expression.why, found.likeness.why} != {""}
    assert found.as_dict()["lip_sync"]["offset_ms"] is None
    assert found.as_dict()["smoothness"]["ratio"] is None


def test_the_untouched_film_is_quiet():
    found = judge(films.untouched(), films.heard(films.speech()), BORDERS)
    assert not found.smoothness.is_seen
    assert found.likeness.drifting == ()
    assert found.naturalness.unusual == ()
    assert found.likeness.sharpness.mean == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize(
    ("kind", "film"),
    [
        ("landmarks", films.moved_at_borders),
        ("flow", films.moved_at_borders),
        ("colour", lambda: films.watched(films.per_clip(films.tinted))),
        ("flow", lambda: films.watched(films.skipped())),
    ],
    ids=["shift-landmarks", "shift-flow", "tint-colour", "skip-flow"],
)
def test_a_seam_that_is_cut_is_seen(kind, film):
    track = film()
    found = smoothness(track, clip_borders(track.num_frames, films.CLIP))
    assert found.kinds[kind].is_seen
    assert found.kinds[kind].worst_frame % films.CLIP == 0
    elsewhere = smoothness(track, [frame + 17 for frame in clip_borders(track.num_frames - 20, films.CLIP)])
    assert not elsewhere.kinds[kind].is_seen, "only where it was cut"


def test_the_template_turned_by_known_angles_is_read_back():
    template = np.load(FACE_TEMPLATE).astype(np.float64)
    yaw, pitch, roll = np.radians([12.0, -7.0, 9.0])
    about_y = np.array([[math.cos(yaw), 0, -math.sin(yaw)], [0, 1, 0], [math.sin(yaw), 0, math.cos(yaw)]])
    about_x = np.array(
        [[1, 0, 0], [0, math.cos(pitch), -math.sin(pitch)], [0, math.sin(pitch), math.cos(pitch)]]
    )
    about_z = np.array([[math.cos(roll), -math.sin(roll), 0], [math.sin(roll), math.cos(roll), 0], [0, 0, 1]])
    pose, unturned = split(200 * template @ (about_z @ about_y @ about_x).T + [300, 200, 0])
    assert pose.face_px == pytest.approx(200)
    assert pose.roll == pytest.approx(9, abs=1)
    assert pose.yaw == pytest.approx(12, abs=1)
    assert pose.pitch == pytest.approx(-7, abs=1)
    assert np.abs(unturned - template).max() < 1e-6


@pytest.mark.parametrize("degrees", [4.0, 10.0])
def test_a_photograph_turned_in_its_plane_is_read_back(degrees):
    track = films.watched(films.turned(degrees, 5, 2.5))
    roll = track.signals["roll"]
    assert np.ptp(roll) == pytest.approx(2 * degrees, rel=0.1)
    asked = degrees * np.sin(2 * np.pi * track.times / 2.5)
    assert np.corrcoef(roll, asked)[0, 1] > 0.99
    assert naturalness(track).spectrum["slow"] > 0.8


@pytest.mark.parametrize(("name", "hz", "band"), [("yaw", 0.5, "slow"), ("pitch", 2.5, "ordinary")])
def test_a_head_that_is_moved_is_seen_to_move(name, hz, band):
    def act(t: float) -> Pose:
        return Pose(**{name: math.radians(6) * math.sin(2 * math.pi * hz * t)})

    track = films.watched(films.acted(act, 5))
    asked = np.sin(2 * np.pi * hz * track.times)
    assert np.corrcoef(track.signals[name], asked)[0, 1] > 0.9
    found = naturalness(track)
    # The warp of a flat picture turns less than it is asked to: a range, not a number.
    assert 3 < getattr(found, name).range < 15
    assert max(found.spectrum, key=found.spectrum.get) == band


def test_blinks_are_counted_and_timed():
    starts = [1.0, 3.0, 4.2, 6.5]

    def act(t: float) -> Pose:
        since = next((t - start for start in starts if start <= t < start + 0.2), None)
        return Pose() if since is None else Pose(blink=1.0)

    track = films.watched(films.acted(act, 8))
    lengths = blink_lengths(track)
    assert len(lengths) == 4
    assert np.mean(lengths) == pytest.approx(0.2, abs=0.05)
    assert naturalness(track).blinks_per_min == pytest.approx(30, abs=0.1)


@pytest.mark.slow
def test_a_head_that_never_blinks_is_unusual():
    track = films.watched(films.turned(3, 22, 3.1, films.SLOW_FPS), fps=films.SLOW_FPS)
    assert naturalness(track).unusual == ("blinks_per_min",)


def test_brows_that_are_raised_are_seen_and_still_ones_are_not():
    frames = films.acted(lambda t: Pose(brow=0.5 - 0.5 * math.cos(3 * t)), 5, films.SLOW_FPS)
    moved, still = expression(films.watched(frames, fps=films.SLOW_FPS)), expression(films.at_rest())
    assert moved.brows.range > 1.0
    assert moved.brows.range > 3 * still.brows.range
    assert moved.brows.speed > 2 * still.brows.speed


def test_eyes_that_narrow_are_seen_and_are_no_blink():
    def narrowing(most: float) -> FaceTrack:
        frames = films.acted(lambda t: Pose(blink=most * (0.5 - 0.5 * math.cos(3 * t))), 5, films.SLOW_FPS)
        return films.watched(frames, fps=films.SLOW_FPS)

    little, much = narrowing(0.2), narrowing(0.4)
    found, still = expression(little).eyes, expression(films.at_rest()).eyes
    assert found.range > 5 * still.range
    assert found.speed > 2 * still.speed
    assert expression(much).eyes.range == pytest.approx(2 * found.range, rel=0.2), "in proportion"
    assert blink_lengths(little) == blink_lengths(much) == []


@pytest.mark.slow
@pytest.mark.parametrize("rise", [0.01, 0.025])
def test_a_smile_lifts_the_mouths_corners_by_as_much(rise):
    track = films.watched(films.smiling(rise, 5, 2.5, films.SLOW_FPS), fps=films.SLOW_FPS)
    found, still = expression(track), expression(films.at_rest())
    assert found.mouth_corners.range == pytest.approx(100 * rise, rel=0.35)
    assert found.mouth_corners.range > 3 * still.mouth_corners.range


@pytest.mark.slow
def test_a_mouth_drawn_wide_and_round_is_seen_to_be():
    def act(t: float) -> Articulation:
        wide = 0.5 + 0.5 * math.sin(3 * t)
        return Articulation(open=0.3, wide=wide, round=1 - wide)

    frames = films.acted(act, 5, films.SLOW_FPS)
    moved, still = expression(films.watched(frames, fps=films.SLOW_FPS)), expression(films.at_rest())
    assert moved.mouth_width.range > 3 * still.mouth_width.range


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("sharpness", lambda frame, way: films.blurred(frame, 1.2 * way)),
        ("colour", lambda frame, way: films.coloured(frame, 0.08 * way)),
        ("ssim", lambda frame, way: films.blurred(frame, 3.0 * way)),
    ],
    ids=["blur", "tint", "much-blur"],
)
def test_a_face_that_drifts_is_seen_to(kind, change):
    found = likeness(films.watched(films.drifting(change), films.renderer().image, films.SLOW_FPS))
    assert kind in found.drifting
    slope = getattr(found, kind).per_min
    assert slope > 0 if kind == "colour" else slope < 0


def test_brightness_alone_is_no_blur():
    def darker(frame: np.ndarray, way: float) -> np.ndarray:
        return (frame * (1 - 0.15 * way)).astype(np.uint8)

    found = likeness(films.watched(films.drifting(darker), films.renderer().image, films.SLOW_FPS))
    assert found.drifting == ("colour",)


def test_another_face_is_less_alike_than_the_portrait_itself():
    other = films.portrait("mara")
    own = likeness(films.untouched()).ssim.mean
    assert likeness(films.watched(films.spoken()[:60], other)).ssim.mean < own - 0.15
