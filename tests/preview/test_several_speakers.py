"""Two faces of one picture, each moved by its own voice: mouths, idling, and what lies between them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from pictures import portrait
from PIL import Image

from avatar.errors import BadInput
from avatar.geometry import FPS, Size
from avatar.media.intake import open_request
from avatar.media.speaker_choice import AskedSpeaker, asked_speakers
from avatar.media.speaker_words import speaker_of_flag
from avatar.preset import load_preset
from avatar.preview.face_detection import find_faces
from avatar.preview.face_finder import Finder
from avatar.preview.several import SeveralFaces
from avatar.preview.source import PreviewSource
from avatar.preview.topology import LOWER_LIP_OUTER, UPPER_LIP_OUTER
from avatar.request import Part, Request
from avatar.speech.catalogue import Catalogue
from avatar.speech.dialogue import Dialogue

SPEECH = Path(__file__).parents[2] / "assets" / "speech" / "hello-en.flac"
SIDE = 256


def two_people() -> np.ndarray:
    """Two portraits side by side, (256, 512, 3)."""
    pair = [Image.fromarray(portrait(name)).resize((SIDE, SIDE)) for name in ("astronaut", "mara")]
    return np.concatenate([np.asarray(one) for one in pair], axis=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """two.png; first.wav speaks for 2 s of 4, second.wav in the other 2 s; short.wav for 1 s alone."""
    path = tmp_path_factory.mktemp("two")
    Image.fromarray(two_people()).save(path / "two.png")
    samples, rate = soundfile.read(SPEECH)
    said = samples[: 2 * rate]
    silence = np.zeros_like(said)
    soundfile.write(path / "first.wav", np.concatenate([said, silence]), rate)
    soundfile.write(path / "second.wav", np.concatenate([silence, said]), rate)
    soundfile.write(path / "short.wav", said[:rate], rate)
    return path


def opened(folder: Path, work: Path, *flags: str, **settings: object) -> Request:
    flags = flags or (f"face=1,audio={folder}/first.wav", f"face=2,audio={folder}/second.wav")
    return open_request(
        folder / "two.png",
        None,
        load_preset("cpu-preview").with_settings(size="512*256", **settings),
        output=work / "o.mp4",
        work=work / "work",
        finder=Finder(),
        speakers=asked_speakers([speaker_of_flag(flag) for flag in flags], None, recording=False),
    )


def frames_of(request: Request) -> np.ndarray:
    """uint8 (T, H, W, 3)."""
    made = PreviewSource().frames(request, lambda: False)
    return np.concatenate([item for item in made if isinstance(item, np.ndarray)])


@pytest.fixture(scope="module")
def film(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    return frames_of(opened(folder, tmp_path_factory.mktemp("film")))


def mouths(image: np.ndarray) -> list[tuple[slice, slice]]:
    """Where each face's lips are, from left to right, with some room below."""
    found = []
    for face in find_faces(image).faces:
        lips = face.landmarks[[*UPPER_LIP_OUTER, *LOWER_LIP_OUTER], :2]
        (left, top), (right, bottom) = lips.min(0).astype(int), lips.max(0).astype(int) + 1
        found.append((slice(top, bottom + (bottom - top) // 2), slice(left, right)))
    return found


def movement(film: np.ndarray, part: tuple[slice, slice]) -> np.ndarray:
    """How much a part of the picture changes from frame to frame."""
    pixels = film[(slice(None), *part)].astype(np.int16)
    return np.abs(np.diff(pixels, axis=0)).mean(axis=(1, 2, 3))


def test_each_mouth_moves_to_its_own_voice(film: np.ndarray) -> None:
    assert len(film) == 4 * FPS
    first, second = (movement(film, part) for part in mouths(film[0]))
    early, late = slice(5, 45), slice(60, 98)
    assert first[early].mean() > 3 * first[late].mean()
    assert second[late].mean() > 3 * second[early].mean()


def test_typed_texts_move_each_mouth_in_its_turn(folder: Path, tmp_path: Path) -> None:
    texts = [AskedSpeaker("2", text="Bob may put up a map."), AskedSpeaker("1", text="Maybe Mary put it up.")]
    asked = asked_speakers(texts, None, recording=False)
    assert asked is not None
    dialogue = Dialogue.of(asked, Catalogue())
    for _ in dialogue.write(tmp_path / "said.wav"):
        assert (tmp_path / "said.wav").exists()
    speakers, split = dialogue.handed_over(tmp_path / "said.wav", dialogue.spoken, tmp_path)
    assert split is None
    request = open_request(
        folder / "two.png",
        None,
        load_preset("cpu-preview").with_settings(size="512*256"),
        output=tmp_path / "o.mp4",
        work=tmp_path / "work",
        finder=Finder(),
        speakers=speakers,
    )
    made = frames_of(request)
    border = round(dialogue.spoken.turns[0].end_s * FPS)
    left, right = (movement(made, part) for part in mouths(made[0]))
    early, late = slice(3, border - 8), slice(border + 3, len(made) - 8)
    assert right[early].mean() > 3 * right[late].mean()
    assert left[late].mean() > 3 * left[early].mean()


def test_a_silent_face_still_breathes_and_blinks(film: np.ndarray) -> None:
    right_half = film[:45, :, SIDE:].astype(np.int16)
    assert np.abs(right_half - right_half[0]).max(axis=(1, 2, 3)).max() > 40  # eyelids, or the head's edge
    still = np.abs(np.diff(right_half, axis=0)).max(axis=(1, 2, 3)) == 0
    assert still.mean() < 0.2


def test_nothing_moves_on_the_border_between_faces(film: np.ndarray, folder: Path, tmp_path: Path) -> None:
    image = np.asarray(Image.open(opened(folder, tmp_path).portrait))
    faces = find_faces(image).faces
    several = SeveralFaces(image, faces, [], Size(512, 256))
    masks = [renderer.head_mask for renderer in several.renderers]
    assert all(mask.any() for mask in masks)
    assert not (masks[0] & masks[1])[:, : SIDE - 8].any()
    assert not (masks[0] & masks[1])[:, SIDE + 8 :].any()
    border = film[:, :, SIDE - 2 : SIDE + 2].astype(np.int16)
    assert np.abs(border - several.image[None, :, SIDE - 2 : SIDE + 2]).max() <= 6


def test_a_voice_that_ends_leaves_its_face_idle(folder: Path, tmp_path: Path) -> None:
    request = opened(folder, tmp_path, f"face=2,audio={folder}/short.wav", f"face=1,audio={folder}/first.wav")
    assert request.num_frames == 4 * FPS
    film = frames_of(request)
    second = movement(film, mouths(film[0])[1])
    assert second[3:20].mean() > 3 * second[35:].mean()


def test_a_face_without_a_voice_listens(folder: Path, tmp_path: Path, film: np.ndarray) -> None:
    request = opened(folder, tmp_path, f"face=1,audio={folder}/first.wav", "face=2")
    assert [one.voice is None for one in request.speakers] == [False, True]
    heard = frames_of(request)
    assert np.array_equal(heard[:, :, : SIDE - 8], film[:, :, : SIDE - 8])  # the other one is not disturbed
    mouth = mouths(film[0])[1]
    assert movement(heard, mouth)[60:].mean() < movement(film, mouth)[60:].mean() / 3
    assert movement(heard, (slice(None), slice(SIDE, None))).max() > 0


def test_a_face_that_is_not_named_stays_still(folder: Path, tmp_path: Path) -> None:
    request = opened(folder, tmp_path, f"face=1,audio={folder}/first.wav")
    assert len(request.other_faces) == 1
    film = frames_of(request)
    left, top, right, bottom = (np.array(request.other_faces[0]) * (512, 256, 512, 256)).astype(int)
    assert movement(film, (slice(top, bottom), slice(left, right))).max() == 0


def test_a_video_in_parts_shows_the_same(folder: Path, tmp_path: Path, film: np.ndarray) -> None:
    request = opened(folder, tmp_path)
    part = Part("run", 50, request.num_frames)
    rest = frames_of(replace(request, part=part, num_frames=50))
    assert np.array_equal(rest, film[50:])


def test_one_named_speaker_moves_as_the_only_one_does(folder: Path, tmp_path: Path) -> None:
    Image.fromarray(portrait("mara")).resize((SIDE, SIDE)).save(tmp_path / "one.png")
    preset = load_preset("cpu-preview").with_settings(size="256*256")
    made = []
    for number, (speech, speakers) in enumerate(
        [
            (folder / "short.wav", None),
            (None, asked_speakers([AskedSpeaker("1", folder / "short.wav")], None, recording=False)),
        ]
    ):
        place = tmp_path / str(number)
        request = open_request(
            tmp_path / "one.png",
            speech,
            preset,
            output=place / "o.mp4",
            work=place / "work",
            finder=Finder(),
            speakers=speakers,
        )
        made.append(frames_of(request))
    assert np.array_equal(*made)


def test_faces_that_are_gone_are_reported(folder: Path, tmp_path: Path) -> None:
    request = opened(folder, tmp_path)
    gone = replace(request.speakers[1], face=(0.45, 0.9, 0.5, 1.0))
    with pytest.raises(BadInput, match=r"face of speaker 2 in two.png cannot be made out"):
        frames_of(replace(request, speakers=(request.speakers[0], gone)))
