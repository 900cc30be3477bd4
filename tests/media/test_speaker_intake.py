"""Several speakers become a request: faces, voices, the mix; whatever does not fit together is refused."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from media_samples import PRESET_SETTINGS, save, tone, write_wav
from PIL import Image

from avatar.errors import BadInput
from avatar.events import Notice
from avatar.media.brushes import BRUSHES
from avatar.media.face_choice import FaceBox, FoundFaces
from avatar.media.intake import open_request
from avatar.media.speaker_choice import asked_speakers
from avatar.media.speaker_words import speaker_of_flag
from avatar.media.speech_reader import SpeechReader
from avatar.preset import Preset
from avatar.request import Request
from avatar.settings import Picture

RATE = 48_000
BOXES = (FaceBox(0.1, 0.2, 0.3, 0.6), FaceBox(0.4, 0.2, 0.6, 0.6), FaceBox(0.7, 0.2, 0.9, 0.6))

Ask = Callable[..., Request]


class Seen:
    """A FaceFinder that sees these boxes in whatever it looks at."""

    def __init__(self, *boxes: FaceBox) -> None:
        self.found = FoundFaces(boxes)

    def faces(self, pixels: np.ndarray) -> FoundFaces:
        return self.found

    def cut_off(self, *_: object) -> list[Notice]:
        return []


@pytest.fixture
def ask(tmp_path: Path) -> Ask:
    """Open a request for three faces. flags: of speakers; split, recording: see asked_speakers.

    painting: in which each has the brush of its place.
    """
    save(tmp_path / "us.png")
    write_wav(tmp_path / "a.wav", tone(1, RATE, 220, 0.7), RATE)
    write_wav(tmp_path / "b.wav", tone(2, RATE, 330, 0.6), RATE)
    sides = np.stack([tone(2, RATE, 220, 0.3), tone(2, RATE, 330, 0.3)], axis=1)
    write_wav(tmp_path / "talk.wav", sides, RATE)
    write_wav(tmp_path / "mono.wav", tone(2, RATE), RATE)
    (tmp_path / "turns.txt").write_text("0 1 Anna\n1 2 Ben\n")
    for name, box in {"left": (0, 0, 60, 120), "right": (100, 0, 160, 120), "corner": (0, 0, 20, 20)}.items():
        mask = Image.new("L", (160, 120))
        mask.paste(255, box)
        mask.save(tmp_path / f"{name}.png")
    Image.new("L", (160, 120)).save(tmp_path / "black.png")
    Image.new("L", (100, 100), 255).save(tmp_path / "square.png")

    def opened(
        *flags: str,
        split: str | None = None,
        recording: str | None = None,
        faces: int = 3,
        painting: str | None = None,
        **given: Any,
    ) -> Request:
        names = [re.sub(r"(audio|mask)=(?=[a-z])", rf"\1={tmp_path}/", flag) for flag in flags]
        place = None if split in (None, "stereo") else str(tmp_path / str(split))
        found = [speaker_of_flag(flag) for flag in names]
        if painting is not None:
            found = [replace(one, painted=tmp_path / painting, brush=n) for n, one in enumerate(found)]
        speakers = asked_speakers(found, place or split, recording=recording is not None)
        settings, engine = given.pop("settings", {}), given.pop("engine", "preview")
        return open_request(
            tmp_path / "us.png",
            None if recording is None else tmp_path / recording,
            Preset(**{**PRESET_SETTINGS, "engine": engine}).with_settings(**settings),
            output=tmp_path / "o.mp4",
            work=tmp_path / "work",
            finder=Seen(*BOXES[:faces]),
            speakers=speakers,
            **given,
        )

    return opened


TWO = ("face=3,audio=b.wav", "face=0.15,0.3,audio=a.wav")


def test_each_face_gets_its_recording(ask: Ask) -> None:
    request = ask(*TWO)
    assert [one.face for one in request.speakers] == [BOXES[2].as_tuple(), BOXES[0].as_tuple()]
    assert [one.name for one in request.speakers] == ["b.wav", "a.wav"]
    assert request.other_faces == (BOXES[1].as_tuple(),)
    assert (request.num_frames, request.speech_name) == (50, "b.wav + a.wav")
    with SpeechReader(request.speakers[1].voice) as voice, SpeechReader(request.speech) as mixed:
        assert (voice.num_samples, mixed.num_samples) == (RATE, 2 * RATE)
        peaks = [np.abs(mixed.samples(start, start + RATE).astype(int)).max() for start in (0, RATE)]
    assert 32_000 < peaks[0] < 32_767
    codes = {notice.code: notice for notice in request.notices}
    assert codes["speakers"].text == (
        "Faces that speak in us.png, counted from the left: 3: b.wav; 1: a.wav."
    )
    change = float(codes["mix_quieter"].values["change"])
    assert change == pytest.approx(2, abs=0.5)
    assert peaks[1] == pytest.approx(0.6 * 32_768 * 10 ** (-change / 20), rel=0.02)


def test_a_face_may_listen(ask: Ask) -> None:
    request = ask(*TWO, "face=2")
    assert request.speakers[2].voice is None
    assert request.voices == tuple(one.voice for one in request.speakers[:2])
    (text,) = [notice.text for notice in request.notices if notice.code == "speakers_listen"]
    assert text.endswith("3: b.wav; 1: a.wav. Without a voice: 2.")


@pytest.mark.parametrize(("split", "names"), [("stereo", ["left", "right"]), ("turns.txt", ["Anna", "Ben"])])
def test_one_recording_is_split_from_the_left(split: str, names: list[str], ask: Ask) -> None:
    request = ask(split=split, recording="talk.wav", faces=2)
    assert [(one.name, one.face[0]) for one in request.speakers] == list(zip(names, (0.1, 0.4)))
    assert request.speech_name == "talk.wav"
    with SpeechReader(request.speech) as heard, SpeechReader(request.voices[0]) as first:
        assert (heard.num_channels, heard.num_samples, first.num_samples) == (2, 2 * RATE, 2 * RATE)
        assert np.abs(first.samples(3 * RATE // 2, 2 * RATE)).any() == (split == "stereo")


def test_labels_say_whose_voice_is_whose(ask: Ask) -> None:
    request = ask("face=3,label=Anna", "face=1,label=Ben", split="turns.txt", recording="talk.wav")
    assert [(one.name, one.face[0]) for one in request.speakers] == [("Anna", 0.7), ("Ben", 0.1)]


def test_a_voice_without_a_face_is_named(ask: Ask) -> None:
    request = ask("face=3,label=Anna", split="turns.txt", recording="talk.wav")
    (text,) = [notice.text for notice in request.notices if notice.code == "speakers_unseen"]
    assert text == "Ben in talk.wav will be heard, but no face says it."


def test_boxes_follow_the_frame(ask: Ask) -> None:
    whole = ask(*TWO)
    flags = (*TWO, "face=2,mask=0.4,0,0.6,1")
    wide = ask(*flags, picture_settings=Picture(aspect="16:9"), engine="diffusion")
    left, top, right, _ = wide.speakers[1].face
    assert top == whole.speakers[1].face[1]
    assert right - left == pytest.approx(0.2 * (4 / 3) / (16 / 9), abs=0.01)
    assert (left + right) / 2 == pytest.approx(0.5 - 0.3 * 0.75, abs=0.01)
    assert wide.speakers[2].mask == pytest.approx((0.425, 0.0, 0.575, 1.0), abs=0.01)


@pytest.mark.parametrize(
    ("flags", "given", "words"),
    [
        (("face=4,audio=a.wav",), {}, "no face 4 in us.png: 3 faces"),
        (("face=0.5,0.9,audio=a.wav",), {}, "no face at 0.5,0.9 in us.png"),
        (("face=1,audio=a.wav", "face=0.2,0.4,audio=b.wav"), {}, "same face, number 1 from the left"),
        (("face=1,audio=none.wav",), {}, "speech none.wav does not exist"),
        (TWO, {"faces": 0}, "No face was found in us.png"),
        ((), {"split": "stereo", "recording": "talk.wav"}, r"2 voices \(left, right\), and 3 faces can be"),
        ((), {"split": "stereo", "recording": "mono.wav", "faces": 2}, "mono.wav is mono"),
        (TWO, {"head_only": True}, "Several speakers and head_only exclude each other"),
        (TWO, {"face_points": {"chin": (0.5, 0.9)}}, "Several speakers and points"),
        (TWO, {"picture_settings": Picture(face="1")}, "Several speakers and face"),
        (TWO, {"picture_settings": Picture(framing="head")}, "Several speakers and framing"),
        (TWO, {"settings": {"trim": True}}, "Several speakers and trim"),
        (("face=1,audio=a.wav,mask=0,0,1,1",), {}, "preview engine cannot honour mask"),
        (("face=1,audio=a.wav,mask=left.png",), {}, "preview engine cannot honour mask"),
        (("mask=none.png,audio=a.wav",), {}, "The mask none.png does not exist"),
        (("mask=square.png,audio=a.wav",), {}, "square.png has another shape than the portrait"),
        (("mask=black.png,audio=a.wav",), {}, "The mask black.png is empty"),
        (("mask=corner.png,audio=a.wav",), {}, "No face lies in the mask corner.png"),
        (("mask=0,0,1,1,audio=a.wav",), {}, "Faces 1 and 2 and 3 lie in the mask 0,0,1,1"),
        (("mask=left.png,audio=a.wav", "face=1,audio=b.wav"), {}, "same face, number 1 from the left"),
        (
            ("face=1,audio=a.wav,mask=left.png", "face=3,mask=0,0,0.7,1"),
            {"engine": "diffusion"},
            "The mask left.png lies wholly within the mask 0,0,0.7,1",
        ),
        (
            ("face=1,audio=a.wav,mask=left.png", "face=3,mask=left.png"),
            {"engine": "diffusion"},
            "The mask left.png lies wholly within the mask left.png",
        ),
    ],
)
def test_what_cannot_be_is_refused(
    flags: tuple[str, ...], given: dict[str, Any], words: str, ask: Ask, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=words):
        ask(*flags, **given)
    assert not (tmp_path / "work").exists()


def test_a_painted_mask_follows_the_frame(ask: Ask) -> None:
    flags = ("face=1,audio=a.wav,mask=left.png", "mask=right.png,audio=b.wav", "face=2")
    request = ask(*flags, picture_settings=Picture(aspect="16:9"), engine="diffusion")
    assert [one.face[0] < 0.5 for one in request.speakers] == [True, False, True]
    assert request.speakers[2].painted is None
    for one, where in zip(request.speakers, (slice(27, 87), slice(127, 187))):
        assert one.mask is None
        with Image.open(io.BytesIO(one.painted)) as mask:
            assert (mask.mode, mask.size) == ("L", (213, 120))  # as many columns were added on both sides
            white = np.asarray(mask) > 127
        assert white[:, where].mean() > 0.97
        assert white.mean() == pytest.approx(60 / 213, abs=0.01)
    assert "mask_chooses" not in [notice.code for notice in request.notices]


def test_a_painting_holds_a_mask_for_each_brush(ask: Ask, tmp_path: Path) -> None:
    painting = Image.new("RGBA", (160, 120))
    painting.save(tmp_path / "blank.png")
    painting.paste((*BRUSHES[0], 158), (0, 0, 60, 120))
    painting.paste((*BRUSHES[2], 158), (100, 0, 160, 120))
    painting.save(tmp_path / "painting.png")
    flags = ("face=1,audio=a.wav", "face=2", "face=3,audio=b.wav")
    first, second, third = ask(*flags, painting="painting.png", engine="diffusion").speakers
    for one, columns in ((first, slice(0, 60)), (third, slice(100, 160))):
        with Image.open(io.BytesIO(one.painted)) as mask:
            white = np.asarray(mask) > 127
        assert white[:, columns].all()
        assert white.mean() == 60 / 160
    assert (second.painted, second.mask) == (None, None), "its brush was not used"
    with pytest.raises(BadInput, match="Nothing is painted"):
        ask(*flags, painting="blank.png", engine="diffusion")


def test_on_the_preview_a_mask_chooses_its_face_alone(ask: Ask) -> None:
    request = ask("mask=right.png,audio=a.wav", "mask=0,0,0.35,1,audio=b.wav")
    assert [one.face[0] > 0.5 for one in request.speakers] == [True, False]
    assert [(one.mask, one.painted) for one in request.speakers] == [(None, None)] * 2
    assert [notice.code for notice in request.notices].count("mask_chooses") == 1


def test_a_mask_beside_its_face_is_noted(ask: Ask) -> None:
    request = ask("face=3,audio=a.wav,mask=left.png", engine="diffusion")
    (notice,) = [one for one in request.notices if one.code == "mask_beside_face"]
    assert notice.text == (
        "The mask left.png does not cover face 3: its voice will move what the mask covers."
    )


def test_a_turn_after_the_end_is_named(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "turns.txt").write_text("0 1 Anna\n7 8 Ben\n")
    with pytest.raises(BadInput, match=r"turns.txt, line 2: it begins at 7 s, but talk.wav lasts 2 s"):
        ask(split="turns.txt", recording="talk.wav", faces=2)


def test_six_channels_are_no_stereo(ask: Ask, tmp_path: Path) -> None:
    write_wav(tmp_path / "six.wav", np.stack([tone(1, RATE, hz) for hz in range(200, 800, 100)], 1), RATE)
    with pytest.raises(BadInput, match=r"six.wav is a recording of 6 channels"):
        ask(split="stereo", recording="six.wav", faces=2)
