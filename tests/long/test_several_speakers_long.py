"""Several speakers in videos made in parts: voices fit across parts, survive a stop, and are kept whole."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from avatar.errors import AvatarError, BadInput
from avatar.long import unfinished
from avatar.long.job import Job
from avatar.media.intake import open_request
from avatar.media.sample_inputs import babble
from avatar.media.speaker_choice import AskedSpeaker, AskedSpeakers, asked_speakers
from avatar.pipeline.pipeline import DiffusionPipeline
from avatar.preset import Preset, load_preset
from avatar.preview.face_finder import Finder
from avatar.preview.source import PreviewSource
from avatar.request import Request
from avatar.runtime.fingerprint import origin
from avatar.runtime.request_bundle import RequestBundle
from tests.fixtures.checkpoints import tiny_checkpoint  # noqa: F401
from tests.long.runs import SELF_TEST, make, packets, pictures

PORTRAITS = Path(__file__).parents[2] / "assets" / "portraits"
PREVIEW = load_preset("cpu-preview").with_settings(size="256*128")


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """us.png with two faces; a.wav and b.wav for them, of different lengths."""
    faces = [Image.open(PORTRAITS / name).convert("RGB") for name in ("astronaut.jpg", "mara.png")]
    pair = np.concatenate([np.asarray(face.resize((256, 256))) for face in faces], axis=1)
    Image.fromarray(pair).save(tmp_path / "us.png")
    sound = babble(3 * 16_000)
    soundfile.write(tmp_path / "a.wav", sound, 16_000)
    soundfile.write(tmp_path / "b.wav", sound[::-1][: 2 * 16_000], 16_000)
    return tmp_path


def both(folder: Path) -> AskedSpeakers | None:
    speakers = [AskedSpeaker("1", folder / "a.wav"), AskedSpeaker("2", folder / "b.wav")]
    return asked_speakers(speakers, None, recording=False)


def job(folder: Path, preset: Preset, output: str = "film.mp4", **more: object) -> Job:
    given = {"image": folder / "us.png", "audio": None, "output": folder / output, "preset": preset}
    return Job(**given, speakers=both(folder), **more)  # type: ignore[arg-type]


class Remembered(PreviewSource):
    """Remembers every frame that it made."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[np.ndarray] = []

    def frames(self, request, cancelled):
        for item in super().frames(request, cancelled):
            if isinstance(item, np.ndarray):
                self.made.append(item)
            yield item


def test_parts_show_what_the_whole_shows(two: Path) -> None:
    whole, parts = Remembered(), Remembered()
    make(job(two, PREVIEW, "whole.mp4"), two / "w", whole)
    make(job(two, PREVIEW, checkpoint_every=1), two / "w2", parts)
    assert pictures(two / "film.mp4").shape == (75, 128, 256, 3)
    assert np.array_equal(np.concatenate(parts.made), np.concatenate(whole.made))


def failing(source: Any) -> Any:
    """The same, failing once four batches of frames have come."""
    frames, batches = source.frames, itertools.count(1)

    def some(request, cancelled):
        for item in frames(request, cancelled):
            yield item
            if isinstance(item, np.ndarray) and next(batches) == 4:
                raise AvatarError("The lamp went out.", "Light it.")

    source.frames = some
    return source


def test_diffusion_goes_on_with_every_voice(two: Path, tiny_checkpoint: Path) -> None:  # noqa: F811
    one = job(two, SELF_TEST, checkpoint_every=1, resume=True)
    make(replace(one, output=two / "whole.mp4"), two / "w", DiffusionPipeline(SELF_TEST, tiny_checkpoint))
    with pytest.raises(AvatarError, match="lamp"):
        make(one, two / "w2", failing(DiffusionPipeline(SELF_TEST, tiny_checkpoint)))
    assert one.parts_folder.exists()
    swapped = replace(both(two), speakers=both(two).speakers[::-1])
    with pytest.raises(BadInput, match="the speakers, their faces or their recordings are others"):
        make(replace(one, speakers=swapped), two / "w3", DiffusionPipeline(SELF_TEST, tiny_checkpoint))
    make(one, two / "w4", DiffusionPipeline(SELF_TEST, tiny_checkpoint))
    assert not one.parts_folder.exists()
    assert packets(two / "film.mp4") == packets(two / "whole.mp4")


def test_a_dialogue_is_kept_with_the_parts(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [AskedSpeaker("1", text="Good morning. How are you?"), AskedSpeaker("2", text="Very well.")]
    typed = replace(
        job(two, PREVIEW, checkpoint_every=1, resume=True),
        speakers=asked_speakers(texts, None, recording=False),
    )
    make(replace(typed, output=two / "whole.mp4"), two / "w", PreviewSource())
    with pytest.raises(AvatarError, match="lamp"):
        make(typed, two / "w2", failing(PreviewSource()))
    assert (typed.parts_folder / "spoken.wav").is_file()

    def never(self: object, target: Path) -> None:
        raise AssertionError("it was spoken before")

    monkeypatch.setattr("avatar.speech.dialogue.Dialogue.write", never)
    make(typed, two / "w3", PreviewSource())
    assert packets(two / "film.mp4") == packets(two / "whole.mp4")
    assert (two / "film.srt").read_text() == (two / "whole.srt").read_text()


@pytest.fixture
def request_of_two(two: Path) -> Request:
    given = {"output": two / "o.mp4", "work": two / "work", "finder": Finder()}
    asked = asked_speakers([AskedSpeaker("2", two / "a.wav"), AskedSpeaker("1")], None, recording=False)
    return open_request(two / "us.png", None, PREVIEW, speakers=asked, **given)


def test_voices_are_kept_with_a_half_made_video(two: Path, request_of_two: Request) -> None:
    kept = unfinished.keep(two / "half", request_of_two)
    assert [voice.parent for voice in kept.voices] == [two / "half"]
    for path in (two / "work").iterdir():
        path.unlink()
    again, _ = unfinished.resume(two / "half", work=two / "work", output=two / "o.mp4")
    assert again.speakers == kept.speakers
    assert [one.voice is None for one in again.speakers] == [False, True]
    assert again.other_faces == request_of_two.other_faces
    kept.voices[0].unlink()
    with pytest.raises(BadInput, match="damaged"):
        unfinished.resume(two / "half", work=two / "work", output=two / "o.mp4")


def test_masks_are_kept_and_travel_with_a_request(two: Path) -> None:
    for name, box in {"l": (0, 0, 256, 256), "r": (256, 0, 512, 256)}.items():
        mask = Image.new("L", (512, 256))
        mask.paste(255, box)
        mask.save(two / f"{name}.png")
    first = AskedSpeaker("", two / "a.wav", painted=two / "l.png")
    speakers = [first, AskedSpeaker("2", painted=two / "r.png")]
    request = open_request(
        two / "us.png",
        None,
        SELF_TEST,
        speakers=asked_speakers(speakers, None, recording=False),
        **{"output": two / "o.mp4", "work": two / "work", "finder": Finder()},
    )
    assert all(one.painted for one in request.speakers)
    kept = unfinished.keep(two / "half", request)
    again, _ = unfinished.resume(two / "half", work=two / "work", output=two / "o.mp4")
    assert again.speakers == kept.speakers
    assert origin(again) == origin(request)
    turned = replace(request, speakers=tuple(replace(one, painted=b"other") for one in request.speakers))
    assert origin(turned)["speakers"] != origin(request)["speakers"]
    (two / "there").mkdir()
    unpacked = RequestBundle.of(request).unpacked(request, two / "there")
    assert [one.painted for one in unpacked.speakers] == [one.painted for one in request.speakers]


def test_voices_travel_with_a_request(two: Path, request_of_two: Request) -> None:
    bundle = RequestBundle.of(request_of_two)
    there = two / "there"
    there.mkdir()
    unpacked = bundle.unpacked(request_of_two, there)
    (voice,) = unpacked.voices
    assert voice.parent == there
    assert voice.read_bytes() == request_of_two.voices[0].read_bytes()
    assert [one.face for one in unpacked.speakers] == [one.face for one in request_of_two.speakers]
