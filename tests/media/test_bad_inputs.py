"""Every way of giving wrong input that we could think of: refused in plain words, and nothing is left."""

from __future__ import annotations

import re
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pytest
from media_samples import (
    PRESET_SETTINGS,
    cut,
    picture,
    png_header,
    save,
    spoil,
    tone,
    write_film,
    write_sound,
    write_wav,
)
from PIL import Image, ImageFile

from avatar.errors import BadInput
from avatar.media.intake import open_request
from avatar.media.limits import InputLimits
from avatar.preset import Preset

Make = Callable[[Path], dict[str, Any]]
NOISE = np.random.default_rng(1).bytes(5000)


def data(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def noisy(path: Path, **options: Any) -> Path:
    return save(path, np.random.default_rng(2).integers(0, 255, (120, 160, 3), np.uint8), **options)


def animated(path: Path, **options: Any) -> Path:
    frames = [Image.fromarray(picture() // (n + 1)) for n in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    return path


def heic(path: Path) -> Path:
    pillow_heif.from_pillow(Image.fromarray(picture(320, 240))).save(path)
    return path


def wav_header(path: Path, num_bytes: int, rate: int = 8000) -> Path:
    """A WAV of silence that takes hardly any disk."""
    with wave.open(str(path), "wb") as out:
        out.setparams((1, 2, rate, 0, "NONE", ""))
        out.writeframes(b"")
    head = bytearray(path.read_bytes())
    head[4:8], head[40:44] = (36 + num_bytes).to_bytes(4, "little"), num_bytes.to_bytes(4, "little")
    path.write_bytes(head)
    with path.open("r+b") as file:
        file.truncate(44 + num_bytes)
    return path


def bytes_at(path: Path, at: int, new: bytes) -> Path:
    content = bytearray(path.read_bytes())
    content[at : at + len(new)] = new
    return data(path, bytes(content))


def portrait(name: str, make: Callable[[Path], Any], words: str, **more: Any) -> Any:
    return pytest.param(
        lambda f: (make(f / name), {"portrait": f / name, **more})[1],
        words,
        name,
        id=f"portrait {words} {name}",
    )


def speech(name: str, make: Callable[[Path], Any], words: str, **more: Any) -> Any:
    return pytest.param(
        lambda f: (make(f / name), {"speech": f / name, **more})[1], words, name, id=f"speech {words} {name}"
    )


def setting(words: str, **more: Any) -> Any:
    return pytest.param(lambda f: more, words, None, id=f"{next(iter(more))} {words}")


def place(name: str, words: str, make: Callable[[Path], Any] = lambda path: None) -> Any:
    return pytest.param(
        lambda f: (make(f / name), {"output": f / name})[1], words, None, id=f"output {words} {name[:30]}"
    )


def preset(words: str, **settings: Any) -> Any:
    return pytest.param(
        lambda f: {"preset": Preset(**PRESET_SETTINGS).with_settings(**settings)},
        words,
        None,
        id=f"preset {words}",
    )


NOT_A_PICTURE, DAMAGED = "not a picture that can be read", "damaged or cut short"
NOT_A_SOUND = "not a sound file that can be read"
POINT = "mouth_left"

CASES = [
    portrait("gone.png", lambda p: None, "does not exist"),
    portrait("folder", lambda p: p.mkdir(), "is a folder"),
    portrait("empty.png", lambda p: data(p, b""), "is empty"),
    portrait("note.png", lambda p: data(p, b"Dear reader, this is no picture. " * 20), NOT_A_PICTURE),
    portrait("noise.jpg", lambda p: data(p, NOISE), NOT_A_PICTURE),
    portrait("page.jpg", lambda p: data(p, b"<!DOCTYPE html><html>404</html>"), NOT_A_PICTURE),
    portrait("shape.svg", lambda p: data(p, b"<svg xmlns='http://www.w3.org/2000/svg'/>"), NOT_A_PICTURE),
    portrait("letter.pdf", lambda p: data(p, b"%PDF-1.7\n%" + NOISE), NOT_A_PICTURE),
    portrait("pack.zip", lambda p: data(p, b"PK\x03\x04" + NOISE), NOT_A_PICTURE),
    portrait("head.png", lambda p: data(p, b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0"), NOT_A_PICTURE),
    portrait("old.bmp", lambda p: save(p), NOT_A_PICTURE),
    portrait("scan.tiff", lambda p: save(p), NOT_A_PICTURE),
    portrait("dance.gif", animated, NOT_A_PICTURE),
    portrait("voice.png", lambda p: write_wav(p, tone(), 16_000), NOT_A_PICTURE),
    portrait("half.png", lambda p: cut(noisy(p), 0.5), DAMAGED),
    portrait("half.jpg", lambda p: cut(noisy(p), 0.5), DAMAGED),
    portrait("half.webp", lambda p: cut(noisy(p), 0.5), rf"{DAMAGED}|{NOT_A_PICTURE}"),
    portrait("half.avif", lambda p: cut(noisy(p), 0.5), rf"{DAMAGED}|{NOT_A_PICTURE}"),
    portrait("half.heic", lambda p: cut(heic(p), 0.5), rf"{DAMAGED}|{NOT_A_PICTURE}"),
    portrait("spoilt.png", lambda p: spoil(noisy(p), 0.4, 0.6), DAMAGED),
    portrait("dot.png", lambda p: save(p, picture(1, 1)), r"too small \(1×1"),
    portrait("thumb.jpg", lambda p: save(p, picture(500, 63)), r"too small \(500×63"),
    portrait("ribbon.png", lambda p: save(p, picture(4000, 64)), "too narrow"),
    portrait("bomb.png", lambda p: png_header(p, 20_000, 20_000), r"too large"),
    portrait("wide.png", lambda p: png_header(p, 9000, 9000), r"too large \(9000×9000"),
    portrait("long.png", lambda p: png_header(p, 17_000, 100), r"too large \(17000×100"),
    portrait("huge.png", lambda p: png_header(p, 2**31 - 1, 2**31 - 1), "too large"),
    portrait("loop.webp", animated, "is animated"),
    portrait("loop.png", animated, "is animated"),
    portrait("loop.avif", animated, "is animated"),
    portrait("ghost.png", lambda p: Image.new("RGBA", (99, 99)).save(p), "wholly transparent"),
    portrait("fat.png", save, "too large: .* MB", limits=InputLimits(max_portrait_bytes=200)),
    speech("gone.wav", lambda p: None, "does not exist"),
    speech("folder", lambda p: p.mkdir(), "is a folder"),
    speech("empty.wav", lambda p: data(p, b""), "is empty"),
    speech("note.wav", lambda p: data(p, b"Not a sound at all. " * 50), NOT_A_SOUND),
    speech("noise.mp3", lambda p: data(p, NOISE), NOT_A_SOUND),
    speech(
        "list.m3u8", lambda p: data(p, b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\na.ts\n"), NOT_A_SOUND
    ),
    speech("list.ffconcat", lambda p: data(p, b"ffconcat version 1.0\nfile other.wav\n"), NOT_A_SOUND),
    speech(
        "list.sdp", lambda p: data(p, b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=audio 9 RTP/AVP 0\n"), NOT_A_SOUND
    ),
    speech("photo.png", save, NOT_A_SOUND),
    speech("pack.zip", lambda p: data(p, b"PK\x03\x04" + NOISE), NOT_A_SOUND),
    speech("mute.mp4", write_film, "no audio track"),
    speech("mute.mkv", write_film, "no audio track"),
    speech("still.wav", lambda p: write_wav(p, np.zeros(16_000), 16_000), "is silent"),
    speech("hush.wav", lambda p: write_wav(p, tone(level=0.0005), 16_000), "is silent"),
    speech("still.mp3", lambda p: write_sound(p, np.zeros(44_100), 44_100, "libmp3lame"), "is silent"),
    speech("nothing.wav", lambda p: write_wav(p, np.zeros(0), 16_000), "0 seconds"),
    speech("click.wav", lambda p: write_wav(p, tone(0.1), 16_000), r"too short \(0.10 s\)"),
    speech("rest.wav", lambda p: cut(write_wav(p, tone(2), 16_000), 0.05), DAMAGED),
    speech("half.m4a", lambda p: cut(write_sound(p, tone(2), 16_000, "aac"), 0.5), DAMAGED),
    speech("rest.flac", lambda p: cut(write_sound(p, tone(2), 16_000, "flac"), 0.05), DAMAGED),
    speech("spoilt.flac", lambda p: spoil(write_sound(p, tone(4), 16_000, "flac"), 0.2, 0.9), DAMAGED),
    speech(
        "spoilt.ogg",
        lambda p: spoil(write_sound(p, tone(4, 48_000), 48_000, "libopus"), 0.0, 0.9),
        NOT_A_SOUND,
    ),
    speech(
        "odd.wav",
        lambda p: bytes_at(write_wav(p, tone(), 16_000), 20, b"\x77\x77"),
        f"no audio track|{DAMAGED}",
    ),
    speech(
        "nobody.wav", lambda p: bytes_at(write_wav(p, tone(), 16_000), 22, b"\0\0"), f"no audio|{NOT_A_SOUND}"
    ),
    speech("orchestra.wav", lambda p: write_wav(p, np.ones((9000, 12)) / 9, 16_000), "has 12 channels"),
    speech("slow.wav", lambda p: write_wav(p, tone(), 100), "sample rate of 100 Hz"),
    speech(
        "fast.wav", lambda p: write_wav(p, tone(), 2_000_000_000), "sample rate of 2000000000 Hz|too short"
    ),
    speech("lecture.wav", lambda p: wav_header(p, 3 * 3600 * 16_000), r"too long \(3 h 0 min\)"),
    speech(
        "long.mp3",
        lambda p: write_sound(p, tone(5), 16_000, "libmp3lame"),
        r"too long",
        limits=InputLimits(3),
    ),
    speech(
        "long.aac", lambda p: write_sound(p, tone(3), 16_000, "aac"), r"too long", limits=InputLimits(1.5)
    ),
    speech(
        "long.ogg",
        lambda p: write_sound(p, tone(3, 48_000), 48_000, "libopus"),
        r"too long",
        limits=InputLimits(1.5),
    ),
    speech(
        "fat.wav",
        lambda p: write_wav(p, tone(), 16_000),
        "too large: ",
        limits=InputLimits(max_speech_bytes=99),
    ),
    setting("30000 characters; at most 20000", prompt="x" * 30_000),
    setting("prompt holds control characters", prompt="a per\0son"),
    setting("prompt holds control characters", prompt="a \ud800 person"),
    setting("prompt is not text", prompt=42),
    setting("Segments of 0 s", segment_s=0),
    setting("Segments of 60 s", segment_s=60),
    setting("Segments of nan s", segment_s=float("nan")),
    setting("points are not understood", face_points={}),
    setting("points are not understood", face_points=[[0.1, 0.2]]),
    setting("'mouth_left' is not understood", face_points={POINT: (0.5,)}),
    setting("'mouth_left' is not understood", face_points={POINT: "middle"}),
    setting("'mouth_left' is not understood", face_points={POINT: None}),
    setting("'mouth_left' lies outside", face_points={POINT: (0.5, 1.01)}),
    setting("'mouth_left' lies outside", face_points={POINT: (float("nan"), 0.5)}),
    setting("Leave one of them out", face_points={POINT: (0.5, 0.5)}, head_only=True),
    setting("disk is nearly full", limits=InputLimits(min_free_bytes=2**60)),
    preset("infer_frames is 30", infer_frames=30),
    preset("sample_steps is 0", sample_steps=0),
    preset("size 'abc' is not understood", size="abc"),
    preset("no setting 'sead'.* 'seed'", sead=1),
    place("film.avi", "ends in .mp4"),
    place("film", "ends in .mp4"),
    place(".mp4", "ends in .mp4"),
    place("a" * 240 + ".mp4", "shorter, plain name"),
    place("a\0b.mp4", "plain name"),
    place("folder.mp4", "is a folder", lambda p: p.mkdir()),
    place("file/film.mp4", "output folder cannot be written", lambda p: p.parent.write_bytes(b"x")),
    pytest.param(
        lambda f: {"output": Path("/proc/film.mp4")}, "output folder cannot be written", None, id="proc"
    ),
    pytest.param(
        lambda f: (data(f / "file", b"x"), {"work": f / "file" / "w"})[1],
        "working folder",
        None,
        id="work in a file",
    ),
    pytest.param(
        lambda f: {"speech": write_sound(f / "s.mp4", tone(), 48_000, "aac"), "output": f / "s.mp4"},
        "overwrite the input",
        None,
        id="output is the input",
    ),
]


def everything_in(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes()[:9999] if path.is_file() else None for path in folder.rglob("*")}


def test_there_are_sixty_and_more() -> None:
    assert len(CASES) >= 60


@pytest.mark.parametrize(("make", "words", "name"), CASES)
def test_bad_input_is_refused_in_plain_words(
    make: Make, words: str, name: str | None, tmp_path: Path
) -> None:
    given = tmp_path / "given"
    given.mkdir()
    arguments: dict[str, Any] = {
        "portrait": save(given / "good.png"),
        "speech": write_wav(given / "good.wav", tone(), 16_000),
        "output": tmp_path / "out" / "film.mp4",
        "work": tmp_path / "work",
    }
    before: dict[Path, bytes | None] = {}
    with pytest.raises(BadInput) as caught:  # noqa: PT012 (presets refuse when they are made)
        arguments["preset"] = Preset(**PRESET_SETTINGS)
        arguments |= make(given)
        before = everything_in(tmp_path)
        open_request(**arguments)
    text = str(caught.value)
    assert re.search(words, text), text
    assert caught.value.message.endswith((".", "?"))
    assert caught.value.remedy.endswith(".") or "Did you mean" in text, "says what to do"
    assert name is None or name in text
    for forbidden in (str(tmp_path), "/tmp", "/proc", "Traceback", "Error", "Errno", "object at", "\0"):
        assert forbidden not in text
    if before:
        assert everything_in(tmp_path) == before


@pytest.mark.parametrize("size", [(20_000, 20_000), (9000, 9000), (17_000, 100)])
def test_bombs_are_refused_before_decoding(
    size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(self: ImageFile.ImageFile) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    bomb = png_header(tmp_path / "bomb.png", *size)
    with pytest.raises(BadInput, match="too large"):
        open_request(
            bomb, write_wav(tmp_path / "s.wav", tone(), 16_000), Preset(**PRESET_SETTINGS),
            output=tmp_path / "o.mp4", work=tmp_path / "work",
        )  # fmt: skip


def test_what_lay_in_the_working_folder_stays(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    data(work / "other", b"kept")
    speech_file = write_wav(tmp_path / "s.wav", np.zeros(9000), 16_000)
    with pytest.raises(BadInput, match="silent"):
        open_request(
            save(tmp_path / "p.png"),
            speech_file,
            Preset(**PRESET_SETTINGS),
            output=tmp_path / "o.mp4",
            work=work,
        )
    assert [path.name for path in work.iterdir()] == ["other"]


def test_messages_call_a_file_by_the_users_name(tmp_path: Path) -> None:
    upload = data(tmp_path / "blob-1234", NOISE)
    with pytest.raises(BadInput, match=r"^Grandma\.png is not a picture"):
        open_request(
            upload, upload, Preset(**PRESET_SETTINGS), output=tmp_path / "o.mp4", work=tmp_path / "w",
            portrait_name="C:\\Users\\me\\Grandma.png",
        )  # fmt: skip
