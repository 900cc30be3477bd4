"""What is put behind the person: the matte and its steadiness, colours at edges, each kind of background."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import soundfile
from PIL import Image

from avatar.errors import BadInput
from avatar.media.background.choice import GREEN_COLOUR, check_background
from avatar.media.background.compositor import Compositor, colours, covering, laid_over, on_chequers
from avatar.media.background.matte import SteadyMatte, without_specks
from avatar.media.intake import open_request
from avatar.preset import load_preset
from avatar.preview.source import PreviewSource

PORTRAITS = Path(__file__).parents[2] / "assets" / "portraits"
STILL = 1  # change of brightness, of 255, up to which a place stands still
MOST_FLICKER = 0.0004  # mean change of the matte from frame to frame where the picture stands still


def portrait(name: str = "astronaut.jpg", side: int = 384) -> np.ndarray:
    with Image.open(PORTRAITS / name) as opened:
        return np.asarray(opened.convert("RGB").resize((side, side)))


def made(name: str, folder: Path) -> np.ndarray:
    """Two seconds of the preview's frames, with a little of the noise that cameras and models add."""
    time = np.arange(96_000) / 48_000
    soundfile.write(folder / "s.wav", 0.4 * np.sin(700 * time) * np.sin(9 * time), 48_000)
    preset = load_preset("cpu-preview").with_settings(size="384*384")
    request = open_request(
        PORTRAITS / name, folder / "s.wav", preset, output=folder / "o.mp4", work=folder / "work"
    )
    found = PreviewSource().frames(request, lambda: False)
    frames = np.concatenate([item for item in found if isinstance(item, np.ndarray)])
    noise = np.random.default_rng(0).normal(0, 1, frames.shape)
    return np.clip(frames + noise, 0, 255).astype(np.uint8)


def flicker(mattes: list[np.ndarray], frames: np.ndarray) -> float:
    """The mean change of the matte between frames, from 0 to 1, where the picture stands still."""
    grey = [cv2.GaussianBlur(cv2.cvtColor(one, cv2.COLOR_RGB2GRAY), (0, 0), 2) for one in frames]
    changes = []
    for before, after, old, new in zip(grey, grey[1:], mattes, mattes[1:]):
        still = cv2.absdiff(before, after) <= STILL
        changes.append(cv2.absdiff(old, new)[still].mean() / 255)
    return float(np.mean(changes))


@pytest.mark.parametrize("name", ["astronaut.jpg", "captain.png"])
def test_the_matte_does_not_flicker_where_nothing_moves(name, tmp_path):
    frames = made(name, tmp_path)
    assert len(frames) == 50
    steady = SteadyMatte()
    found = flicker([steady.of(frame) for frame in frames], frames)
    alone = flicker([SteadyMatte().of(frame) for frame in frames], frames)
    assert found < MOST_FLICKER
    assert found < 0.9 * alone, "frame by frame it flickers more"


def test_the_matte_follows_what_moves_at_once():
    before, steady = portrait(), SteadyMatte()
    for _ in range(5):
        steady.of(before)
    after = np.roll(before, 40, axis=1)
    found, alone = steady.of(after), SteadyMatte().of(after)
    assert np.abs(found.astype(int) - alone).mean() / 255 < 0.02


def test_the_person_is_told_from_the_background():
    matte = SteadyMatte().of(portrait())
    assert matte.shape == (384, 384)
    assert matte[50:110, 145:185].min() == 255, "the face"
    assert matte[:60, :60].max() == 0
    assert matte[:60, -60:].max() == 0


def test_small_pieces_apart_from_the_person_are_left_out():
    answer = np.zeros((256, 256), np.float32)
    answer[60:256, 80:180], answer[10:20, 10:20], answer[100:200, 200:250] = 1, 1, 0.9
    found = without_specks(answer)
    assert found[15, 15] == 0
    assert found[150, 220] == np.float32(0.9), "a second person stays"
    assert found[100, 100] == 1


def test_edges_carry_no_halo_of_the_old_background():
    share = np.clip((np.arange(200) - 90) * 25, 0, 255).astype(np.uint8)[None].repeat(120, 0)
    alpha = share[..., None] / 255
    red, white = np.array([150, 40, 30]), np.array([250, 250, 250])
    frame = np.round(alpha * red + (1 - alpha) * white).astype(np.uint8)
    wanted = np.round(alpha * red).astype(int)
    person, around = colours(frame, share)
    found = laid_over(person, share, np.zeros_like(frame)).astype(int)
    edge = (share > 0) & (share < 255)
    assert np.abs(found - wanted)[edge].max() <= 16
    halo = laid_over(frame, share, np.zeros_like(frame)).astype(int)
    assert np.abs(halo - wanted)[edge].max() > 50, "without it there is one"
    assert np.abs(around[:, : around.shape[1] // 3].astype(int) - white).max() <= 3


@pytest.mark.parametrize(
    ("background", "colour"), [("green", GREEN_COLOUR), ("#204060", (32, 64, 96)), ("#FFAA00", (255, 170, 0))]
)
def test_a_colour_is_behind_the_person_alone(background, colour):
    frame = portrait()
    [found] = Compositor(background).apply(frame[None])
    assert (found[:60, :60] == colour).all()
    assert (found[50:110, 145:185] == frame[50:110, 145:185]).all(), "the face is as it was"


def test_blur_softens_the_background_alone():
    frame = portrait()
    [found] = Compositor("blur").apply(frame[None])
    assert (found[50:110, 145:185] == frame[50:110, 145:185]).all()
    before, after = (
        cv2.Laplacian(one[:120, :80], cv2.CV_32F) for one in (frame, np.ascontiguousarray(found))
    )
    assert np.abs(after).mean() < 0.25 * np.abs(before).mean()
    assert np.abs(found[:120, :80].mean((0, 1)) - frame[:120, :80].mean((0, 1))).max() < 12


def test_a_picture_covers_the_frame_without_stretching():
    picture = np.zeros((100, 400, 3), np.uint8)
    picture[:, 140:260] = 255  # the middle, which alone is seen
    assert (covering(picture, 60, 60) == 255).all()
    assert covering(picture, 33, 17).shape == (33, 17, 3)
    [found] = Compositor("picture", picture).apply(portrait()[None])
    assert (found[:60, :60] == 255).all()


def test_transparent_frames_keep_nothing_of_the_old_background():
    frame = np.ascontiguousarray(portrait())
    found = Compositor("transparent").apply(frame[None])
    assert found.shape == (1, 384, 384, 4)
    clear = found[0, ..., 3] == 0
    assert clear.mean() > 0.3
    far = cv2.erode(clear.astype(np.uint8), np.ones((61, 61), np.uint8)) > 0
    assert far.any()
    assert found[0, far, :3].max() < 30, "what was there cannot be seen"
    [shown] = on_chequers(found)
    assert set(np.unique(shown[far])) <= {90, 140}


def test_frames_of_another_size_go_on_with_the_same_background():
    compositor = Compositor("#102030")
    assert compositor.apply(portrait()[None]).shape == (1, 384, 384, 3)
    assert (compositor.apply(portrait(side=320)[None])[0, :40, :40] == (16, 32, 48)).all()


@pytest.mark.parametrize("bad", ["#12", "#gggggg", "Blur", "picture", "", "/etc/passwd", "../x.png"])
def test_only_words_and_colours_are_backgrounds_without_files(bad):
    with pytest.raises(BadInput, match="It must be one of: keep, blur, green, transparent"):
        check_background(bad)


@pytest.mark.parametrize("bad", ["#12", "nowhere.png", "", "a\0b"])
def test_a_picture_that_is_not_there_is_refused(bad):
    with pytest.raises(BadInput, match="no colour, and no picture that is there"):
        check_background(bad, files=True)
