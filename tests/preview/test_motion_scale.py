"""How much the preview moves: from a still head to lively, with blinks and closed lips as they are."""

from __future__ import annotations

from dataclasses import astuple, fields
from pathlib import Path

import numpy as np
import pytest

from avatar.geometry import FPS
from avatar.media.portrait import read_portrait
from avatar.media.speech_reader import SpeechReader, write_speech
from avatar.preview.animate import animate
from avatar.preview.face_detection import find_face
from avatar.preview.head_motion import Motion
from avatar.preview.live import animate_live
from avatar.preview.motion_scale import MOTION_SCALES, WIDEST
from avatar.preview.pose import Articulation, Pose
from avatar.preview.render import Renderer
from avatar.runtime.live_protocol import LiveFrames
from avatar.settings import SETTINGS
from tests.preview.test_live_preview import Sticks, tone

ROOT = Path(__file__).parents[2]
ORDER = ("still", "calm", "normal", "lively")
POSE = [field.name for field in fields(Pose)]
MOUTH = [field.name for field in fields(Articulation)]


def poses(motion_level: str) -> dict[str, np.ndarray]:
    """A minute of lively speech, by the fields of Pose."""
    motion = Motion(3, MOTION_SCALES[motion_level])
    table = np.array([astuple(motion.pose(i / FPS, 0.8, 0.5 * (i % 40 < 8))) for i in range(60 * FPS)])
    return dict(zip(POSE, table.T))


@pytest.fixture(scope="module")
def spoken(tmp_path_factory) -> dict[str, np.ndarray]:
    """Articulations of real speech, (frames, fields of Articulation), by motion."""
    wav = tmp_path_factory.mktemp("speech") / "speech.wav"
    write_speech(ROOT / "assets" / "speech" / "hello-en.flac", wav)
    out = {}
    for name in ORDER:
        with SpeechReader(wav) as speech:
            performance = animate(speech.listen, 75, seed=3, scale=MOTION_SCALES[name])
            out[name] = np.array([astuple(articulation) for articulation, _ in performance])
    return out


def test_every_choice_of_the_table_has_a_scale():
    assert tuple(MOTION_SCALES) == SETTINGS["motion"].choices == ORDER
    assert SETTINGS["motion"].default == "normal"


def test_the_head_moves_more_from_still_to_lively():
    found = {name: poses(name) for name in ORDER}
    for field in ("yaw", "pitch", "roll", "tx", "ty", "brow"):
        spread = [float(np.ptp(found[name][field])) for name in ORDER]
        assert spread[0] == 0, field
        assert np.all(np.diff(spread) > 0.01 * spread[-1]), (field, spread)
    assert np.ptp(found["lively"]["yaw"]) == pytest.approx(1.5 * np.ptp(found["normal"]["yaw"]))
    assert found["lively"]["brow"].max() <= 1


def test_eyes_blink_and_shoulders_breathe_as_ever():
    usual = poses("normal")
    for name in ORDER:
        moved = poses(name)
        for field in ("blink", "breath"):
            assert np.array_equal(moved[field], usual[field]), (name, field)
    assert usual["blink"].max() > 0.95


def test_eyes_still_look_about_and_hold_their_aim():
    moved = {name: poses(name) for name in ORDER}
    held = {name: one["gaze_x"] + 0.7 * one["yaw"] for name, one in moved.items()}
    spread = [float(np.ptp(held[name])) for name in ORDER]
    assert spread[0] > 0.005
    assert np.all(np.diff(spread) > 0)
    assert np.abs(held["lively"]).max() < 0.13


def test_lips_open_wider_and_close_just_as_well(spoken):
    column = MOUTH.index
    widths = [spoken[name][:, column("open")] for name in ORDER]
    assert np.all(np.diff([one.max() for one in widths]) > 0.02)
    assert widths[-1].max() <= WIDEST
    for name in ORDER:
        for field in ("press", "ff", "tongue"):
            at = column(field)
            assert np.array_equal(spoken[name][:, at], spoken["normal"][:, at]), (name, field)
        assert np.array_equal(spoken[name][:, column("open")] == 0, widths[2] == 0), name


def test_a_still_head_leaves_hair_and_background_alone():
    image = read_portrait(ROOT / "assets" / "portraits" / "mara.png")
    renderer = Renderer(image, find_face(image).face)
    top = slice(0, renderer.feature_boxes[1][1])  # above the eyes
    still, usual = (Motion(5, MOTION_SCALES[name]) for name in ("still", "normal"))
    first = renderer.frame(Articulation(), still.pose(0.0, 1.0, 1.0))
    later = renderer.frame(Articulation(open=0.8), still.pose(7.0, 1.0, 1.0))
    assert np.array_equal(later[top], first[top])
    assert not np.array_equal(later, first), "the mouth moves"
    moved = renderer.frame(Articulation(open=0.8), usual.pose(7.0, 1.0, 1.0))
    assert not np.array_equal(moved[top], first[top])


def test_live_sessions_move_as_much_as_videos():
    found = {}
    for name in ("still", "normal", "lively"):
        sticks, yaws, opened = Sticks(), [], []
        for made in animate_live(
            sticks, iter([tone(150)]), lambda: False, may_skip=False, scale=MOTION_SCALES[name]
        ):
            assert isinstance(made, LiveFrames)
            articulation, pose = sticks.poses
            yaws.append(pose.yaw)
            opened.append(articulation.open)
        found[name] = np.ptp(yaws), max(opened)
    assert found["still"][0] == 0
    assert found["lively"][0] == pytest.approx(1.5 * found["normal"][0])
    assert 0 < found["still"][1] < found["normal"][1] <= found["lively"][1]
