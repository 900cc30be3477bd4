"""The renderer: what moves, which way, and what stays."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from avatar.errors import BadInput
from avatar.preview import topology as at
from avatar.preview.pose import Articulation, Pose
from avatar.preview.render import Renderer
from avatar.preview.render.eyes import eyes_of
from avatar.preview.render.lips import Lips, U, lip_targets
from avatar.preview.render.matte import Layers, background_share
from avatar.preview.render.mouth import MouthWarper
from avatar.preview.render.mouth_interior import Palette
from tests.preview.filming import eye_opening, framed_portrait, inner_gap, look, renderer
from tests.preview.pictures import PORTRAITS

REST = Articulation()
STILL = Pose()
AA = Articulation(open=0.9)
WILD = [
    (AA, Pose(yaw=0.2, pitch=0.1, roll=0.05, tx=0.03, ty=0.02, breath=1, brow=1, gaze_x=0.2)),
    (Articulation(open=0.3, round=1), Pose(yaw=-0.2, pitch=-0.1, roll=-0.05, tx=-0.03, blink=1, gaze_y=0.2)),
    (Articulation(open=1.1, wide=1, upper=1, lower=1, tongue=1), Pose(blink=0.5, gaze_x=-0.3)),
    (Articulation(press=1, ff=1), Pose(breath=1)),
]
SHIPPED = sorted(p.stem for p in PORTRAITS.iterdir() if p.suffix in (".png", ".jpg"))


def seen(name: str, articulation: Articulation = REST, pose: Pose = STILL) -> np.ndarray:
    """Landmarks (468, 2) of a rendered frame, in the portrait's face heights."""
    _, face = framed_portrait(name)
    points = look(renderer(name).frame(articulation, pose), face)
    return points / np.linalg.norm(face.landmarks[at.FOREHEAD, :2] - face.landmarks[at.CHIN, :2])


def moved(name: str, articulation: Articulation = REST, pose: Pose = STILL) -> np.ndarray:
    """How far landmarks moved from rest, (468, 2) face heights."""
    return seen(name, articulation, pose) - seen(name)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_frame_is_pure_and_keeps_what_is_outside_the_mask(name: str) -> None:
    image, _ = framed_portrait(name)
    draw = renderer(name)
    first = [draw.frame(*wild) for wild in WILD]
    again = [draw.frame(*wild) for wild in reversed(WILD)][::-1]
    for frame, same in zip(first, again, strict=True):
        assert frame.dtype == np.uint8
        assert frame.shape == image.shape
        assert np.array_equal(frame, same)
        assert np.array_equal(frame[~draw.head_mask], image[~draw.head_mask])
        assert not np.array_equal(frame, image)


@pytest.mark.parametrize("name", ["mara", "captain", "fox"])
def test_a_closed_mouth_at_rest_is_the_portrait(name: str) -> None:
    image, _ = framed_portrait(name)
    rest = renderer(name).frame(REST, STILL)
    assert np.abs(rest.astype(int) - image).mean() < 0.5


def test_the_background_stays_still() -> None:
    """Where the person is not, nothing moves, though the head goes all the way to either side."""
    image, face = framed_portrait("astronaut")
    draw = renderer("astronaut")
    assert draw.layered
    for pose in (Pose(yaw=0.2, tx=0.03), Pose(yaw=-0.2, tx=-0.03)):
        frame = draw.frame(REST, pose)
        beside = slice(120, 200), slice(0, 60)
        assert np.array_equal(frame[beside], image[beside])
    assert draw.head_mask.mean() < 0.9
    x, y = face.landmarks[at.NOSE_TIP, :2].astype(int)
    assert draw.head_mask[y, x]


@pytest.mark.parametrize("name", ["astronaut", "mara", "fox", "robot"])
def test_the_mouth_shuts_and_opens(name: str) -> None:
    shut, ajar, wide = (inner_gap(seen(name, Articulation(open=opening))) for opening in (0, 0.45, 0.9))
    assert shut < 0.012
    assert shut + 0.02 < ajar < wide - 0.02


def test_rounding_narrows_and_spreading_widens() -> None:
    def width(articulation: Articulation) -> float:
        points = seen("mara", articulation)
        return float(np.linalg.norm(points[at.MOUTH_RIGHT] - points[at.MOUTH_LEFT]))

    rest = width(REST)
    assert width(Articulation(open=0.27, round=1)) < 0.9 * rest
    assert width(Articulation(open=0.34, wide=0.6)) > 1.01 * rest


def test_a_gaping_mouth_is_shut_by_its_targets() -> None:
    """Targets are absolute: lips that the portrait shows far apart meet at rest."""
    _, face = framed_portrait("mara")
    points = face.landmarks.copy()
    lower = list(at.LOWER_LIP_INNER[1:-1] + at.LOWER_LIP_OUTER[1:-1])
    points[lower, 1] += 50
    points[at.CHIN, 1] += 30
    lips = Lips(replace(face, landmarks=points))
    assert lips.gap_px > 40
    shut = lip_targets(lips, REST)
    assert np.abs(shut.lower_inner - shut.upper_inner).max() < 1e-3
    assert lip_targets(lips, AA).gap_px == pytest.approx(0.9 * 0.105 * lips.face_height)


def test_lips_press_thin_and_tuck_under_the_teeth() -> None:
    _, face = framed_portrait("mara")
    lips = Lips(face)
    centre = len(U.axis) // 2

    def lower_lip(a: Articulation) -> float:
        targets = lip_targets(lips, a)
        return float(targets.lower_outer[centre] - targets.lower_inner[centre])

    assert lower_lip(Articulation(press=1)) < 0.8 * lower_lip(REST)
    assert lower_lip(Articulation(ff=1)) < 0.7 * lower_lip(REST)
    assert lower_lip(Articulation(round=1)) > 1.1 * lower_lip(REST)


@pytest.mark.parametrize(
    ("pose", "axis", "sign"),
    [
        (Pose(yaw=0.12), 0, 1),
        (Pose(yaw=-0.12), 0, -1),
        (Pose(pitch=0.12), 1, 1),
        (Pose(pitch=-0.12), 1, -1),
        (Pose(tx=0.02), 0, 1),
        (Pose(ty=0.02), 1, 1),
        (Pose(roll=0.04), 0, 1),  # clockwise about the neck: the nose goes right
    ],
)
def test_the_head_turns_the_right_way(pose: Pose, axis: int, sign: int) -> None:
    assert sign * moved("astronaut", pose=pose)[at.NOSE_TIP, axis] > 0.008


def test_yaw_turns_the_nose_more_than_the_outline() -> None:
    turn = moved("astronaut", pose=Pose(yaw=0.15))[:, 0]
    assert turn[at.NOSE_TIP] > 2 * abs(turn[list(at.FACE_OVAL)]).mean()


@pytest.mark.parametrize("name", ["astronaut", "mara"])
def test_a_blink_shuts_both_eyes(name: str) -> None:
    for corners, upper, lower in ((at.LEFT_EYE_CORNERS, 159, 145), (at.RIGHT_EYE_CORNERS, 386, 374)):
        rest, half, shut = (
            eye_opening(seen(name, pose=Pose(blink=blink)), corners, upper, lower) for blink in (0, 0.5, 1)
        )
        assert shut < 0.55 * rest
        assert shut < half < rest


def test_gaze_moves_the_dark_of_the_eye_and_not_the_lids() -> None:
    _, face = framed_portrait("mara")
    assert face.iris is not None

    def pupil_x(frame: np.ndarray) -> float:
        """Where the dark lies between the lids of the image-left eye, px."""
        x, y = face.iris[0, 0].astype(int)
        reach = int(np.linalg.norm(face.landmarks[33, :2] - face.landmarks[133, :2]) / 2)
        patch = frame[y - 3 : y + 6, x - reach : x + reach].mean(axis=(0, 2))
        dark = np.clip(patch.max() - patch, 0, None) ** 2
        return float((dark * np.arange(len(dark))).sum() / dark.sum())

    draw = renderer("mara")
    left, ahead, right = (pupil_x(draw.frame(REST, Pose(gaze_x=gaze))) for gaze in (-0.2, 0, 0.2))
    assert left + 1 < ahead < right - 1
    corners = list(at.LEFT_EYE_CORNERS + at.RIGHT_EYE_CORNERS)
    assert np.abs(moved("mara", pose=Pose(gaze_x=0.2))[corners]).max() < 0.01


def test_brows_rise_and_the_mouth_does_not() -> None:
    rise = -moved("astronaut", pose=Pose(brow=1))[:, 1]
    assert rise[list(at.LEFT_BROW + at.RIGHT_BROW)].mean() > 0.004
    assert abs(rise[[at.MOUTH_LEFT, at.MOUTH_RIGHT]]).max() < 0.006


def test_hidden_eyes_neither_blink_nor_look() -> None:
    image, face = framed_portrait("astronaut")
    draw = Renderer(image, replace(face, has_eyes=False))
    assert np.array_equal(draw.frame(REST, Pose(blink=1, gaze_x=0.2)), draw.frame(REST, STILL))


@pytest.mark.parametrize("field", [f.name for f in fields(Articulation)] + [f.name for f in fields(Pose)])
def test_every_number_shows(field: str) -> None:
    """Nothing that drives the face is accepted and ignored."""
    half_open = Articulation(open=0.5)
    draw = renderer("astronaut")
    before = draw.frame(half_open, STILL)
    if hasattr(half_open, field):
        after = draw.frame(replace(half_open, **{field: getattr(half_open, field) + 0.3}), STILL)
    else:
        after = draw.frame(half_open, replace(STILL, **{field: 0.3}))
    assert not np.array_equal(before, after)


def test_the_coarse_warp_equals_the_full_one() -> None:
    """The mouth's lattice, interpolated, is the warp computed at every pixel."""
    image, face = framed_portrait("astronaut")
    coarse = MouthWarper(Lips(face), image.shape[1], image.shape[0])
    full = MouthWarper(Lips(face), image.shape[1], image.shape[0])
    coarse.step, full.step = 2, 1
    x0, y0, x1, y1 = coarse.box
    places = np.stack(np.meshgrid(np.arange(x0, x1), np.arange(y0, y1)), axis=-1).astype(np.float32)

    def planes(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return places[..., 0], places[..., 1]

    targets = lip_targets(coarse.lips, AA)
    a, b = (warper.warp(targets, places, planes) for warper in (coarse, full))
    within = (
        slice(None, -coarse.step),
        slice(None, -coarse.step),
    )  # the lattice ends at the box, where all is still
    assert np.abs(a.shift_x - b.shift_x)[within].mean() < 0.02
    assert np.percentile(np.abs(a.shift_y - b.shift_y)[within], 99) < 0.6
    assert np.percentile(np.abs(a.below_upper - b.below_upper)[within], 99) < 0.3


def test_rows_read_as_interpolation_does() -> None:
    rng = np.random.default_rng(0)
    curves = rng.normal(size=(193, 3)).astype(np.float32)
    at_x = rng.uniform(-3.5, 3.4, (7, 11)).astype(np.float32)
    read = U.read(curves, at_x)
    for column, curve in zip(read, curves.T, strict=True):
        assert np.allclose(column, np.interp(at_x, U.axis, curve), atol=2e-2)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_person_over_the_plate_is_the_portrait(name: str) -> None:
    """Both layers, put together unmoved, give every pixel back within rounding."""
    image, face = framed_portrait(name)
    box = renderer(name).box
    layers = Layers(image, face, box)
    assert layers.separate
    opacity = layers.person[..., 3]
    together = layers.person[..., :3].astype(int) + background_share(layers.plate, opacity)
    original = image[box[1] : box[3], box[0] : box[2]]
    assert np.abs(together - original).max() <= 1
    assert 0.1 < (opacity > 127).mean() < 0.9
    oval = face.landmarks[list(at.FACE_OVAL), :2].mean(axis=0).astype(int) - box[:2]
    assert opacity[oval[1], oval[0]] == 255


def test_without_a_person_to_tell_apart_all_moves_together() -> None:
    """A face that is one with its background is not cut out; the mask still ends within reach of the head."""
    _, face = framed_portrait("mara")
    noise = np.random.default_rng(0).integers(100, 130, (572, 456, 3), dtype=np.uint8)
    draw = Renderer(noise, face)
    assert not draw.layered
    frame = draw.frame(AA, Pose(yaw=0.2))
    assert np.array_equal(frame[~draw.head_mask], noise[~draw.head_mask])


def test_drawn_eyes_without_lids_stay_open() -> None:
    """Where the skin above the eye is white, as in a cartoon's round eyes, a blink would show blank eyes."""
    image, face = framed_portrait("mara")
    goggled = image.copy()
    for corners in (at.LEFT_EYE_CORNERS, at.RIGHT_EYE_CORNERS):
        x, y = face.landmarks[list(corners), :2].mean(axis=0).astype(int)
        goggled[y - 40 : y + 4, x - 30 : x + 30] = 255
    assert [eye.blinks for eye in eyes_of(image, face)] == [True, True]
    assert [eye.blinks for eye in eyes_of(goggled, face)] == [False, False]


def test_teeth_take_the_light() -> None:
    """The same face in warm light has warm teeth; in a darker picture they are darker."""
    image, face = framed_portrait("astronaut")
    warm = np.clip(image * [1.0, 0.85, 0.55], 0, 255).astype(np.uint8)
    dark = (image * 0.4).astype(np.uint8)
    lips = Lips(face)
    plain, warmed, dimmed = (
        Palette.of(picture, face, lips).tooth.mean(axis=0) for picture in (image, warm, dark)
    )
    assert warmed[2] / warmed[0] < 0.9 * plain[2] / plain[0]
    assert dimmed.mean() < 0.6 * plain.mean()


@pytest.mark.parametrize("case", range(24))
def test_any_face_anywhere_can_be_drawn(case: int) -> None:
    """Tiny, huge, turned, half outside, on black or white: a frame comes out, and the mask holds."""
    image, face = framed_portrait("astronaut")
    rng = np.random.default_rng(case)
    image = (image, image[:, :200].copy(), np.zeros_like(image), np.full_like(image, 255))[case % 4]
    height, width = image.shape[:2]
    angle = (0.0, 0.6, 1.5)[case % 3]
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]], np.float32)
    scale, place = rng.choice([0.12, 0.4, 1, 1.8, 3]), rng.uniform((0, 0), (width, height))
    centre = face.landmarks[at.INNER_LIP_TOP, :2]
    points = face.landmarks * np.float32(scale)
    points[:, :2] = (face.landmarks[:, :2] - centre) * np.float32(scale) @ turn + place
    iris = (face.iris - centre) * np.float32(scale) @ turn + place if case % 5 else None
    lips_inside = Lips(replace(face, landmarks=points)).frame.origin
    if not ((lips_inside >= 0) & (lips_inside < (width, height))).all():
        place_inside = np.clip(lips_inside, 0, (width - 1, height - 1)) - lips_inside
        points[:, :2] += place_inside
    draw = Renderer(image, replace(face, landmarks=points, iris=iris))
    for wild in WILD:
        frame = draw.frame(*wild)
        assert frame.shape == image.shape
        assert np.array_equal(frame[~draw.head_mask], image[~draw.head_mask])


def test_a_mouth_outside_the_picture_is_refused() -> None:
    image, face = framed_portrait("astronaut")
    with pytest.raises(BadInput, match="outside"):
        Renderer(image, face.scaled(1.0, (600.0, 0.0)))
