"""Points placed by a person: what is refused, and the mesh that goes through them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pictures import DRAWN, PORTRAITS, SMILEY_POINTS, portrait, smiley

from avatar.errors import BadInput
from avatar.preview import topology as at
from avatar.preview.face_detection import Face, find_face
from avatar.preview.mesh_from_points import face_from_points
from avatar.preview.points import FacePoints, load_sidecar

GOOD = SMILEY_POINTS
PLACED_AT = {
    "mouth_left": at.MOUTH_LEFT,
    "mouth_right": at.MOUTH_RIGHT,
    "inner_lip_top": at.INNER_LIP_TOP,
    "inner_lip_bottom": at.INNER_LIP_BOTTOM,
    "outer_lip_top": at.OUTER_LIP_TOP,
    "outer_lip_bottom": at.OUTER_LIP_BOTTOM,
    "chin": at.CHIN,
}


def without(*names: str) -> dict:
    return {name: value for name, value in GOOD.items() if name not in names}


def drawn_points(name: str, **more: tuple[float, float]) -> FacePoints:
    high, wide = portrait(name).shape[:2]
    return FacePoints.parse({k: [x / wide, y / high] for k, (x, y) in (DRAWN[name] | more).items()})


def test_points_survive_json() -> None:
    points = FacePoints.parse(GOOD | {"eye_size": [0.06, 0.05]})
    assert FacePoints.parse(json.loads(json.dumps(points.to_dict()))) == points
    assert points.chin == (0.5, 0.85)
    assert FacePoints.parse(without("eye_left", "eye_right")).eye_left is None
    assert FacePoints.parse(GOOD | {"eye_size": None}).eye_size is None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "must be an object of named points"),
        ([0.5, 0.5], "must be an object of named points"),
        ({}, "the left mouth corner, the right mouth corner"),
        (without("chin"), "the chin missing"),
        (without("inner_lip_top"), "the lower edge of the upper lip missing"),
        (GOOD | {"chin": None}, "the chin missing"),
        (GOOD | {"chinn": [0.5, 0.9]}, 'Did you mean "chin"?'),
        (GOOD | {"nose": [0.5, 0.5]}, '"nose" is not a face point'),
        (GOOD | {"chin": 0.9}, '"chin" is not a pair of numbers'),
        (GOOD | {"chin": [0.5]}, '"chin" is not a pair of numbers'),
        (GOOD | {"chin": [0.5, 0.9, 0.1]}, '"chin" is not a pair of numbers'),
        (GOOD | {"chin": ["0.5", "0.9"]}, '"chin" is not a pair of numbers'),
        (GOOD | {"chin": [True, False]}, '"chin" is not a pair of numbers'),
        (GOOD | {"chin": [0.5, float("nan")]}, "finite"),
        (GOOD | {"chin": [0.5, 1.2]}, "The chin is outside the picture"),
        (GOOD | {"mouth_left": [-0.1, 0.5]}, "The left mouth corner is outside the picture"),
        (GOOD | {"mouth_left": GOOD["mouth_right"], "mouth_right": GOOD["mouth_left"]}, "swapped"),
        (GOOD | {"mouth_left": GOOD["mouth_right"]}, "at the same place"),
        (
            GOOD | {"inner_lip_top": GOOD["outer_lip_bottom"], "inner_lip_bottom": GOOD["outer_lip_top"]},
            "The upper edge of the lower lip is above the lower edge of the upper lip",
        ),
        (
            GOOD | {"outer_lip_top": [0.5, 0.7]},
            "The lower edge of the upper lip is above the upper edge of the upper lip",
        ),
        (
            GOOD | {"outer_lip_bottom": [0.5, 0.6]},
            "The lower edge of the lower lip is above the upper edge of the lower lip",
        ),
        (GOOD | {"chin": [0.5, 0.3]}, "The chin is above the lower edge of the lower lip"),
        (GOOD | {"chin": [0.5, 0.686]}, "The chin touches the mouth"),
        (without("eye_left"), "Only one eye"),
        (GOOD | {"eye_left": GOOD["eye_right"], "eye_right": GOOD["eye_left"]}, "The eyes are swapped"),
        (GOOD | {"eye_left": [0.36, 0.9]}, "The left eye is not above the mouth"),
        (without("eye_left", "eye_right") | {"eye_size": [0.1, 0.1]}, "size is given without eyes"),
        (GOOD | {"eye_size": [0.0, 0.1]}, "The eye size is out of range"),
    ],
)
def test_wrong_points_are_named(data: object, message: str) -> None:
    with pytest.raises(BadInput) as caught:
        FacePoints.parse(data)
    assert message in str(caught.value)
    assert caught.value.remedy


def test_from_no_face_through_points_to_a_face() -> None:
    image = smiley()
    assert find_face(image).verdict == "none"
    face = face_from_points(FacePoints.parse(GOOD), 400, 400)
    assert (face.origin, face.jitter, face.iris, face.has_eyes) == ("points", 0.0, None, True)
    assert face.landmarks.shape == (468, 3)
    assert face.landmarks.dtype == np.float32
    assert np.isfinite(face.landmarks).all()
    # the head of the drawing is a circle from 60 to 340; the mesh must lie over it
    low, high = face.landmarks[:, :2].min(axis=0), face.landmarks[:, :2].max(axis=0)
    assert np.abs(low - 60).max() < 60
    assert np.abs(high - 340).max() < 60


@pytest.mark.parametrize("size", [(400, 400), (1600, 900), (300, 1000)])
@pytest.mark.parametrize("tilt", [-25.0, 0.0, 10.0])
def test_mesh_goes_through_the_points(size: tuple[int, int], tilt: float) -> None:
    cos, sin = np.cos(np.radians(tilt)), np.sin(np.radians(tilt))
    side = min(size)
    turned = {}
    for name, (x, y) in GOOD.items():
        x, y = (x - 0.5) * side * 0.6, (y - 0.5) * side * 0.6
        turned[name] = [(x * cos - y * sin) / size[0] + 0.5, (x * sin + y * cos) / size[1] + 0.5]
    face = face_from_points(FacePoints.parse(turned), *size)
    for name, index in PLACED_AT.items():
        assert face.landmarks[index, :2] == pytest.approx(np.multiply(turned[name], size), abs=0.5), name
    for name, corners in (("eye_left", at.LEFT_EYE_CORNERS), ("eye_right", at.RIGHT_EYE_CORNERS)):
        centre = face.landmarks[list(corners), :2].mean(axis=0)
        assert np.linalg.norm(centre - np.multiply(turned[name], size)) < 0.02 * side, name
    down = np.array([-sin, cos])
    lips = (at.UPPER_LIP_OUTER, at.UPPER_LIP_INNER, at.LOWER_LIP_INNER, at.LOWER_LIP_OUTER)
    depths = np.array([face.landmarks[list(lip), :2] @ down for lip in lips])
    assert (np.diff(depths[:, 1:-1], axis=0) > -1e-3).all()


def test_lips_may_touch_but_never_cross() -> None:
    trembling = GOOD | {"inner_lip_top": [0.5, 0.672], "inner_lip_bottom": [0.5, 0.668]}
    face = face_from_points(FacePoints.parse(trembling), 400, 400)
    gap = face.landmarks[list(at.LOWER_LIP_INNER), 1] - face.landmarks[list(at.UPPER_LIP_INNER), 1]
    assert (gap >= -1e-3).all()


def test_without_eyes_there_is_no_blinking() -> None:
    face = face_from_points(FacePoints.parse(without("eye_left", "eye_right")), 400, 400)
    assert not face.has_eyes
    assert np.isfinite(face.landmarks).all()


def test_eye_size_sets_the_lids() -> None:
    face = face_from_points(drawn_points("mara", eye_size=(80, 44)), 768, 960)
    assert np.ptp(face.landmarks[list(at.LEFT_EYE_UPPER), 0]) == pytest.approx(80, abs=0.5)
    top, bottom = face.landmarks[at.LEFT_EYE_UPPER[4], 1], face.landmarks[at.LEFT_EYE_LOWER[4], 1]
    assert bottom - top == pytest.approx(44, abs=0.5)


@pytest.mark.parametrize("name", ["mara", "robot", "fox"])
def test_placed_mesh_agrees_with_the_model(name: str) -> None:
    image = portrait(name)
    points = drawn_points(name, **({} if "chin" in DRAWN[name] else {"chin": (400, 640)}))
    placed = face_from_points(points, image.shape[1], image.shape[0])
    seen = find_face(image).face
    assert seen is not None

    def apart(rows: tuple[int, ...]) -> float:
        gaps = np.linalg.norm(placed.landmarks[list(rows), :2] - seen.landmarks[list(rows), :2], axis=1)
        return float(gaps.mean()) / face_height(seen)

    assert apart(at.UPPER_LIP_INNER + at.LOWER_LIP_INNER) <= 0.03
    assert apart(at.UPPER_LIP_OUTER + at.LOWER_LIP_OUTER) <= 0.04
    assert apart(tuple(range(468))) <= 0.10


def face_height(face: Face) -> float:
    return float(np.linalg.norm(face.landmarks[at.CHIN, :2] - face.landmarks[at.FOREHEAD, :2]))


@pytest.mark.parametrize("sidecar", sorted(PORTRAITS.glob("*.json")), ids=lambda path: path.stem)
def test_shipped_sidecars_give_faces(sidecar: Path) -> None:
    points = load_sidecar(sidecar.with_suffix(".png"))
    assert points is not None
    high, wide = portrait(sidecar.stem).shape[:2]
    face = face_from_points(points, wide, high)
    assert face.has_eyes
    inside = (face.landmarks[:, :2] > 0) & (face.landmarks[:, :2] < (wide, high))
    assert inside.all()


def test_portrait_without_sidecar_has_no_points(tmp_path: Path) -> None:
    assert load_sidecar(tmp_path / "photo.png") is None
    assert load_sidecar(PORTRAITS / "astronaut.jpg") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", 'has no "points"'),
        ('{"point": {}}', 'has no "points"'),
        ('{"points": {"chin": [0.5, 0.9]}}', "Face points are incomplete"),
        ('{"points": {"chin": [0.5, 9]}}', "Face points are incomplete"),
    ],
)
def test_wrong_sidecar_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "photo.json").write_text(text)
    with pytest.raises(BadInput) as caught:
        load_sidecar(tmp_path / "photo.png")
    assert "photo.json" in str(caught.value)
    assert message in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_binary_sidecar_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photo.json").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(BadInput, match=r"photo\.json cannot be read"):
        load_sidecar(tmp_path / "photo.png")


def test_a_portrait_with_the_longest_name_has_no_sidecar(tmp_path: Path) -> None:
    """Its sidecar's name would be a byte longer than a file's may be."""
    longest = tmp_path / ("n" * 251 + ".jpg")
    longest.write_bytes(b"x")
    assert load_sidecar(longest) is None
