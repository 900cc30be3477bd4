"""What keeps speech from being seen is reported: covered mouths, cut-off chins, few pixels; else nothing."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from pictures import PORTRAITS, portrait

from avatar.errors import BadInput
from avatar.geometry import Size
from avatar.preset import load_preset
from avatar.preview import topology as at
from avatar.preview.face_detection import Detection
from avatar.preview.mesh_from_points import face_from_points
from avatar.preview.points import load_sidecar
from avatar.preview.portrait_notices import concerns, portrait_notices
from avatar.preview.recent import known_faces
from avatar.preview.source import face_of
from avatar.request import Request
from avatar.sizes import video_size

SHIPPED = sorted(path for path in PORTRAITS.iterdir() if path.suffix in (".png", ".jpg"))
FACES = ("astronaut", "mara", "robot", "fox")


def find_face(image: np.ndarray) -> Detection:
    """The main face; each picture is searched once."""
    faces = known_faces(image)
    return faces.found[faces.main] if faces.found else Detection("none", None, faces.jitter)


def concerns_of(image: np.ndarray, size: Size | None = None) -> set[str]:
    """Codes of the concerns about a picture, in a video of its own size if none is given."""
    found = find_face(image)
    size = size or Size(image.shape[1], image.shape[0])
    return {notice.code for notice in concerns(image, found.face, size, "me.jpg")}


def mouth(image: np.ndarray) -> tuple[np.ndarray, float]:
    """Its middle and its width, in pixels."""
    points = find_face(image).face.landmarks[:, :2]
    left, right = points[at.MOUTH_LEFT], points[at.MOUTH_RIGHT]
    return (left + right) / 2, float(np.linalg.norm(right - left))


def hand(image: np.ndarray, *, shade: float = 0.93) -> np.ndarray:
    """Four fingers in the colour of the face, side by side across the mouth."""
    face = find_face(image).face
    points = face.landmarks[:, :2].round().astype(int)
    skin = np.median(image[points[:, 1], points[:, 0]], axis=0) * shade
    (x, y), width = mouth(image)
    out = image.astype(np.float64)
    tall, wide = 1.15 * width, 1.05 * width
    for finger in range(4):
        middle = y - 0.5 * tall + (finger + 0.5) * tall / 4
        rows = np.arange(int(middle - tall / 8), int(middle + tall / 8) + 1)
        light = 0.72 + 0.3 * np.cos((rows - middle) / (tall / 4) * np.pi)
        out[rows, int(x - wide) : int(x + wide)] = light[:, None, None] * skin
    return out.clip(0, 255).astype(np.uint8)


def mask(image: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """A cloth of one colour from nose to chin."""
    (x, y), width = mouth(image)
    axes = int(1.2 * width), int(0.7 * width)
    return cv2.ellipse(image.copy(), (int(x), int(y)), axes, 0, 0, 360, colour, -1)


def cut_at(image: np.ndarray, share: float) -> np.ndarray:
    """The picture down to a share of the face's height, from forehead to chin."""
    points = find_face(image).face.landmarks
    top, chin = points[at.FOREHEAD, 1], points[at.CHIN, 1]
    return np.ascontiguousarray(image[: round(top + share * (chin - top))])


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
@pytest.mark.parametrize("engine", ["preview", "diffusion"])
def test_shipped_portraits_raise_no_concern(path: Path, engine: str) -> None:
    image = portrait(path.stem)
    height, width = image.shape[:2]
    sizes = [video_size(engine, width, height, size) for size in ("704*704", "384*256")]
    points = load_sidecar(path)
    faces = [find_face(image).face]
    faces += [face_from_points(points, width, height)] if points else []
    assert [concerns(image, face, size, path.name) for face in faces for size in sizes] == [[]] * (
        len(faces) * len(sizes)
    )


@pytest.mark.parametrize("change", ["mirrored", "half", "dark", "noisy", "blurred"])
@pytest.mark.parametrize("name", ["astronaut", "mara"])
def test_lesser_copies_raise_no_concern(name: str, change: str) -> None:
    image = portrait(name)
    noise = np.random.default_rng(0).normal(0, 12, image.shape)
    changed = {
        "mirrored": image[:, ::-1],
        "half": cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
        "dark": 255 * (image / 255) ** 2.4,
        "noisy": image + noise,
        "blurred": cv2.GaussianBlur(image, (0, 0), 2),
    }[change]
    picture = np.ascontiguousarray(np.clip(changed, 0, 255).astype(np.uint8))
    assert concerns_of(picture, Size(704, 704)) == set()


@pytest.mark.parametrize("name", FACES)
def test_a_hand_over_the_mouth_is_reported(name: str) -> None:
    covered = hand(portrait(name))
    assert find_face(covered).verdict != "none"
    assert concerns_of(covered) == {"mouth_covered"}


@pytest.mark.parametrize("colour", [(25, 25, 25), (235, 235, 235)])
def test_a_mask_over_the_mouth_is_reported(colour: tuple[int, int, int]) -> None:
    covered = mask(portrait("mara"), colour)
    assert concerns_of(covered) == {"mouth_covered"}


@pytest.mark.parametrize("name", FACES)
@pytest.mark.parametrize(
    ("share", "codes"), [(1.05, set()), (0.9, {"chin_cut_off"}), (0.72, {"mouth_cut_off"})]
)
def test_a_chin_and_a_mouth_cut_off_are_reported(name: str, share: float, codes: set[str]) -> None:
    assert concerns_of(cut_at(portrait(name), share), Size(704, 704)) - {"small_portrait"} == codes


@pytest.mark.parametrize(("height_px", "codes"), [(14, {"small_face"}), (36, {"small_face"}), (48, set())])
def test_a_face_too_small_in_the_video_is_reported(height_px: int, codes: set[str]) -> None:
    image = portrait("astronaut")
    points = find_face(image).face.landmarks
    tall = float(np.linalg.norm(points[at.FOREHEAD, :2] - points[at.CHIN, :2]))
    side = round(512 * height_px / tall)
    assert concerns_of(image, Size(side, side)) == codes
    [*said] = concerns(image, find_face(image).face, Size(side, side), "me.jpg")
    assert all(abs(notice.values["pixels"] - height_px) <= 1 for notice in said)


@pytest.mark.parametrize(("side", "is_small"), [(96, True), (255, True), (256, False)])
def test_a_small_portrait_is_reported(side: int, is_small: bool) -> None:
    face = portrait("astronaut")[40:210, 140:310]
    image = cv2.resize(face, (side, side), interpolation=cv2.INTER_AREA)
    assert concerns_of(image, Size(704, 704)) == ({"small_portrait"} if is_small else set())


def request_of(image: np.ndarray, folder: Path, preset: str) -> Request:
    path = folder / "portrait.png"
    cv2.imwrite(str(path), image[:, :, ::-1])
    places = path, folder / "s.wav", folder, folder / "o.mp4"
    return Request(*places, load_preset(preset), 25, "me.jpg", "s.wav")


def test_the_preview_tells_its_concerns(tmp_path: Path) -> None:
    covered = hand(portrait("astronaut"))
    _, notices = face_of(request_of(covered, tmp_path, "cpu-preview"), covered)
    assert [notice.code for notice in notices] == ["mouth_covered"]
    assert "me.jpg" in notices[0].text
    assert notices[0].level == "warning"


def test_other_engines_are_reported_of_by_the_command_line(tmp_path: Path) -> None:
    covered = hand(portrait("astronaut"))
    found = portrait_notices(request_of(covered, tmp_path, "80gb"))
    assert [notice.code for notice in found] == ["mouth_covered"]
    assert portrait_notices(request_of(covered, tmp_path, "cpu-preview")) == []  # it looks by itself


def test_a_chin_cut_off_is_never_answered_with_points(tmp_path: Path) -> None:
    """Where the face is found with doubt, the remedy is another picture; where none is, what can be done."""
    cut = cut_at(portrait("captain"), 0.97)
    assert find_face(cut).verdict == "weak"
    _, notices = face_of(request_of(cut, tmp_path, "cpu-preview"), cut)
    assert [notice.code for notice in notices] == ["chin_cut_off"]
    assert "points" not in notices[0].text
    blank = np.full((300, 300, 3), 200, np.uint8)
    with pytest.raises(BadInput, match="No face") as caught:
        face_of(request_of(blank, tmp_path, "cpu-preview"), blank)
    assert "on the picture's edge" in caught.value.remedy
