"""The head: alive, subtle, smooth, seeded, and the same wherever a video starts."""

from dataclasses import astuple, fields

import numpy as np
import pytest

from avatar.geometry import FPS
from avatar.preview.animate import animate
from avatar.preview.head_motion import Motion
from avatar.preview.pose import Pose
from tests.preview.truth import clips

NAMES = [field.name for field in fields(Pose)]
SEEDS = range(20)


def poses(seed: int, seconds: float = 60, energy: float = 0.0, emphasis: float = 0.0) -> np.ndarray:
    """Poses at FPS, (frames, fields of Pose)."""
    motion = Motion(seed)
    return np.array([astuple(motion.pose(i / FPS, energy, emphasis)) for i in range(int(seconds * FPS))])


def column(table: np.ndarray, name: str) -> np.ndarray:
    return table[:, NAMES.index(name)]


@pytest.mark.parametrize("seed", SEEDS)
def test_blinks_are_ten_to_thirty_a_minute_and_shut_the_eyes(seed: int) -> None:
    blink = column(poses(seed), "blink")
    shut = blink > 0.5
    count = int(np.sum(shut[1:] & ~shut[:-1]))
    assert 10 <= count <= 30
    assert blink.min() == 0
    assert 0.95 <= blink.max() <= 1
    assert shut.mean() < 0.12


def test_blinks_come_at_uneven_times_and_some_twice() -> None:
    starts = [Motion(seed).blinks(0, 60) for seed in SEEDS]
    gaps = np.concatenate([np.diff(times) for times in starts])
    assert gaps.min() > 0.3
    assert gaps.max() < 6.5
    assert gaps.std() > 0.8
    assert 0 < np.mean(gaps < 0.5) < 0.3


def test_blinks_do_not_depend_on_where_one_looks_from() -> None:
    motion = Motion(3)
    whole = motion.blinks(0, 600)
    parts = [time_s for start in range(0, 600, 7) for time_s in motion.blinks(start, min(start + 7, 600))]
    assert parts == whole


def test_same_seed_same_motion_from_any_start() -> None:
    there, again = Motion(7), Motion(7)
    times = [i / FPS for i in range(500)]
    forwards = [there.pose(t, 0.4, 0.2) for t in times]
    backwards = [again.pose(t, 0.4, 0.2) for t in reversed(times)][::-1]
    assert forwards == backwards


def test_other_seeds_move_otherwise() -> None:
    first, second = poses(0, 20), poses(1, 20)
    for name in NAMES:
        if name != "brow":
            assert np.abs(column(first, name) - column(second, name)).max() > 1e-3, name


def test_a_video_starts_from_the_portrait() -> None:
    for seed in SEEDS:
        start = Motion(seed).pose(0.0)
        assert astuple(start) == pytest.approx(astuple(Pose()), abs=1e-9)


@pytest.mark.parametrize(
    ("name", "limit", "step"),
    [
        ("yaw", 0.15, 0.016),
        ("pitch", 0.13, 0.010),
        ("roll", 0.03, 0.004),
        ("tx", 0.015, 0.002),
        ("ty", 0.02, 0.002),
        ("breath", 1.0, 0.07),
    ],
)
def test_the_head_sways_gently(name: str, limit: float, step: float) -> None:
    for seed in SEEDS:
        values = column(poses(seed, energy=1.0), name)
        assert np.abs(values).max() <= limit
        assert np.ptp(values) > 0.3 * limit
        assert np.abs(np.diff(values)).max() <= step


def test_silence_is_calmer_than_speech() -> None:
    quiet, lively = poses(0), poses(0, energy=1.0)
    for name in ("yaw", "pitch", "roll"):
        assert column(quiet, name).std() < 0.8 * column(lively, name).std()


def test_eyes_jump_and_rest_and_mostly_meet_the_viewer() -> None:
    for seed in SEEDS:
        table = poses(seed)
        # Where the eyes look, in the world: with the head's turn taken out.
        look = np.hypot(
            column(table, "gaze_x") + 0.7 * column(table, "yaw"),
            column(table, "gaze_y") + 0.7 * column(table, "pitch"),
        )
        jumps = np.abs(np.diff(look))
        assert look.max() < 0.15
        assert np.mean(jumps < 1e-3) > 0.85
        assert 5 <= np.sum(jumps > 0.012) <= 60
        assert np.mean(look < 0.03) > 0.4
        assert np.abs(column(table, "gaze_x")).max() < 0.22


def test_emphasis_nods_the_head_and_raises_the_brows() -> None:
    nods, brows = [], []
    for seed in SEEDS:
        calm, stressed = poses(seed, energy=0.5), poses(seed, energy=0.5, emphasis=0.6)
        nods.append(column(stressed, "pitch") - column(calm, "pitch"))
        brows.append(column(stressed, "brow"))
        assert column(calm, "brow").max() == 0
    nods, brows = np.array(nods), np.array(brows)
    assert nods.min() >= -1e-9
    assert brows.min() >= 0
    assert brows.max() <= 1
    # Not every stress moves the head, nor the brows, and seldom both or neither alike.
    assert 0.2 < np.mean(nods > 0.018) < 0.8
    assert 0.2 < np.mean(brows > 0.3) < 0.8
    assert abs(np.corrcoef(nods.ravel(), brows.ravel())[0, 1]) < 0.5


def test_a_performance_can_be_made_again() -> None:
    clip = clips()[6]
    first, again, other = (
        list(animate(clip.sentence.listen, clip.num_frames, seed=seed)) for seed in (1, 1, 2)
    )
    assert len(first) == clip.num_frames
    assert first == again
    assert [mouth for mouth, _ in first] == [mouth for mouth, _ in other]
    assert [pose for _, pose in first] != [pose for _, pose in other]


def test_a_performance_may_start_in_its_middle() -> None:
    clip = clips()[6]
    whole = list(animate(clip.sentence.listen, clip.num_frames, seed=5))
    tail = list(animate(clip.sentence.listen, clip.num_frames, seed=5, first_frame=30))
    assert len(tail) == clip.num_frames - 30
    for (mouth, pose), (expected_mouth, expected_pose) in zip(tail, whole[30:], strict=True):
        assert astuple(mouth) == pytest.approx(astuple(expected_mouth), abs=1e-5)
        assert astuple(pose) == pytest.approx(astuple(expected_pose), abs=1e-5)
