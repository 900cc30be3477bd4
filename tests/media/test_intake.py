"""Good input becomes a request that engines can rely on."""

from __future__ import annotations

import os
import re
import wave
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from media_samples import PRESET_SETTINGS, picture, save, tone, write_sound, write_wav
from PIL import Image

from avatar.errors import BadInput
from avatar.media.intake import open_request
from avatar.media.limits import InputLimits
from avatar.media.prompt import check_prompt
from avatar.media.segments import tag
from avatar.media.speech_reader import SpeechReader
from avatar.preset import Preset, Requires
from avatar.request import Request
from tests.fixtures.tokenizer import write_tokenizer

Ask = Callable[..., Request]


def test_a_request_holds_what_was_given(tmp_path: Path) -> None:
    preset = Preset(**PRESET_SETTINGS)
    request = open_request(
        str(save(tmp_path / "upload1.webp", lossless=True)),
        str(write_sound(tmp_path / "upload2.m4a", tone(2.5, 44_100), 44_100, "aac")),
        preset,
        output=str(tmp_path / "new" / "folders" / "film.mp4"),
        work=str(tmp_path / "work" / "run1"),
        prompt="  a person speaks\n",
        face_points={"chin": (0.5, 1)},
        portrait_name="Ada.webp",
        speech_name="C:\\sounds\\hello.m4a",
        segment_s=1.5,
    )
    assert request == Request(
        portrait=tmp_path / "work" / "run1" / "portrait.png",
        speech=tmp_path / "work" / "run1" / "speech.wav",
        work=tmp_path / "work" / "run1",
        output=tmp_path / "new" / "folders" / "film.mp4",
        preset=preset,
        num_frames=request.num_frames,
        portrait_name="Ada.webp",
        speech_name="hello.m4a",
        prompt="a person speaks",
        face_points={"chin": (0.5, 1.0)},
        segment_s=1.5,
    )
    with Image.open(request.portrait) as portrait:
        assert (portrait.format, portrait.mode) == ("PNG", "RGB")
        assert np.array_equal(np.asarray(portrait), picture())
    with wave.open(str(request.speech)) as speech:
        assert speech.getparams()[:3] == (1, 2, 48_000)
        assert request.num_frames == -(-speech.getnframes() // 1920)
    assert request.output.parent.is_dir()
    assert sorted(path.name for path in request.work.iterdir()) == ["portrait.png", "speech.wav"]


@pytest.mark.parametrize(("num_clip", "frames"), [(0, 100), (1, 48), (2, 96), (3, 100), (100, 100)])
def test_num_clip_bounds_the_length_and_says_so(num_clip: int, frames: int, tmp_path: Path) -> None:
    request = open_request(
        save(tmp_path / "p.png"),
        write_wav(tmp_path / "s.wav", tone(4), 16_000),
        Preset(**PRESET_SETTINGS).with_settings(num_clip=num_clip, infer_frames=48),
        output=tmp_path / "o.mp4",
        work=tmp_path / "work",
    )
    assert request.num_frames == frames
    reported = [notice for notice in request.notices if "num_clip" in notice.text]
    assert bool(reported) == (frames < 100)


def test_the_presets_prompt_serves_where_none_is_given(tmp_path: Path) -> None:
    preset = Preset(**PRESET_SETTINGS).with_settings(prompt="a calm person")
    files = save(tmp_path / "p.png"), write_wav(tmp_path / "s.wav", tone(), 16_000)
    asked = [
        open_request(*files, preset, output=tmp_path / "o.mp4", work=tmp_path / "w", prompt=prompt)
        for prompt in ("", "a merry person")
    ]
    assert [request.prompt for request in asked] == ["a calm person", "a merry person"]


def test_what_was_changed_is_noticed(tmp_path: Path) -> None:
    Image.new("RGBA", (160, 120), (9, 9, 9, 99)).save(tmp_path / "glass.png")
    request = open_request(
        tmp_path / "glass.png",
        write_wav(tmp_path / "low.wav", tone(level=0.004), 16_000),
        Preset(**PRESET_SETTINGS),
        output=tmp_path / "o.mp4",
        work=tmp_path / "work",
    )
    assert len(request.notices) == 2
    assert all(
        words in one.text for words, one in zip(("glass.png", "low.wav"), request.notices, strict=True)
    )


def test_a_video_smaller_than_asked_for_is_told_once(tmp_path: Path) -> None:
    speech = write_wav(tmp_path / "s.wav", tone(2.0, 48_000, level=0.5), 48_000)
    whole = Image.fromarray(picture()).resize((160, 160))
    preset = Preset(**PRESET_SETTINGS)

    def notices(side: int, engine: str, size: str) -> list[str]:
        whole.resize((side, side)).save(tmp_path / "small.png")
        chosen = replace(preset, engine=engine).with_settings(size=size)
        request = open_request(
            tmp_path / "small.png", speech, chosen, output=tmp_path / "o.mp4", work=tmp_path / "work"
        )
        return [notice.text for notice in request.notices if notice.code == "smaller_video"]

    assert notices(160, "preview", "704*704") == [
        "The video of small.png has 320×320 pixels instead of 704×704, which size 704*704 allows: the picture"
        " has only 160×160. Take a larger picture or a wider framing; or set a smaller size."
    ]
    assert notices(160, "preview", "320*320") == notices(400, "preview", "704*704") == []
    assert notices(160, "diffusion", "704*384")[0].startswith("The video of small.png has 192×192")


def test_a_finished_video_may_be_replaced(ask: Ask) -> None:
    first = ask(1)
    with av.open(str(first.output), "w", format="mp4") as older:
        tag(older, None)
        sound = older.add_stream("aac", rate=48_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 48_000
        older.mux(sound.encode(frame))
        older.mux(sound.encode(None))
    data = first.output.read_bytes()
    assert ask(1) == first
    assert first.output.read_bytes() == data, "not before the new one is whole"


def test_folders_of_other_users_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied", "/secret/folder")

    monkeypatch.setattr("avatar.media.intake.tempfile.TemporaryFile", refuse)
    with pytest.raises(BadInput, match=r"folder cannot be written \(Permission denied\)") as caught:
        open_request(
            save(tmp_path / "p.png"),
            write_wav(tmp_path / "s.wav", tone(), 16_000),
            Preset(**PRESET_SETTINGS),
            output=tmp_path / "out" / "o.mp4",
            work=tmp_path / "work",
        )
    assert "secret" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["p.png", "s.wav"]


def test_a_long_prompt_is_refused_before_the_portrait_is_opened(tmp_path: Path) -> None:
    """With the count, by the checkpoint's tokenizer; a model that brings its own, or none, counts itself."""
    folder = write_tokenizer(tmp_path / "umt5")
    diffusion = {"engine": "diffusion", "requires": Requires(weights="live-avatar")}
    given = [tmp_path / "no.png", write_wav(tmp_path / "s.wav", tone(), 16_000)]
    places = {"output": tmp_path / "o.mp4", "work": tmp_path / "w", "tokenizer": folder}
    with pytest.raises(BadInput, match="601 tokens long; the model reads at most 512"):
        open_request(*given, Preset(**PRESET_SETTINGS | diffusion), prompt="a " * 600, **places)
    with pytest.raises(BadInput, match=r"no\.png"):
        open_request(*given, Preset(**PRESET_SETTINGS | diffusion), prompt="a " * 500, **places)
    with pytest.raises(BadInput, match=r"no\.png"):
        open_request(*given, Preset(**PRESET_SETTINGS), prompt="a " * 600, **places)


def test_a_bad_portrait_is_refused_before_the_speech_is_read(tmp_path: Path) -> None:
    preset = Preset(**PRESET_SETTINGS | {"engine": "diffusion"}).with_settings(size="64*64")
    Image.new("RGB", (2000, 16)).save(tmp_path / "long.png")
    speech = write_wav(tmp_path / "s.wav", np.zeros(16_000), 16_000)  # silent, which would be refused
    places = {"output": tmp_path / "o.mp4", "work": tmp_path / "w", "limits": InputLimits(min_side_px=10)}
    with pytest.raises(BadInput, match=r"2000 x 16 pixels does not fit size 64\*64"):
        open_request(tmp_path / "long.png", speech, preset, **places)


def test_prompts_that_fit_lose_their_edge_spaces_alone() -> None:
    prompt = "A woman in a red coat speaks to the camera, calm and friendly, in soft window light. " * 4
    assert check_prompt(prompt, 512) == prompt.strip()


def test_silent_ends_are_trimmed_where_that_is_set(tmp_path: Path) -> None:
    sound = np.zeros(round(6.5 * 48_000), np.float32)
    sound[96_000:240_000] = np.random.default_rng(0).uniform(0.1, 0.3, 144_000)  # 2 to 5 s
    write_wav(tmp_path / "s.wav", sound, 48_000)
    requests = [
        open_request(
            save(tmp_path / "p.png"),
            tmp_path / "s.wav",
            Preset(**PRESET_SETTINGS).with_settings(trim=trims),
            output=tmp_path / f"{trims}.mp4",
            work=tmp_path / f"work-{trims}",
        )
        for trims in (False, True)
    ]
    assert [request.num_frames for request in requests] == [163, pytest.approx(86, abs=2)]
    assert requests[0].notices == ()
    ends = r"Silence was cut from s\.wav: 1\.[78] s at the beginning and 1\.[23] s at the end\."
    assert re.fullmatch(ends, requests[1].notices[0].text)
    with SpeechReader(requests[1].speech) as speech:
        kept = speech.samples(0, speech.num_samples)
    assert np.count_nonzero(kept) == 144_000, "nothing that is heard is lost"
