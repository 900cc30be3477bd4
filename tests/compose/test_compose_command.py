"""`compose` end to end, looked at in the pixels and heard in the samples of what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from avatar.cli import main
from avatar.media.side_files import made_here

SIZE, SECONDS, HZ = (160, 120), 3.0, 48_000
GREY = 90


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The current folder, with video.mp4: grey for 3 s, a hum from 1 s to 2 s."""
    monkeypatch.chdir(tmp_path)
    film("video.mp4", GREY, hum(1.0, 2.0))
    return tmp_path


def hum(start_s: float, end_s: float) -> np.ndarray:
    times = np.arange(round(SECONDS * HZ)) / HZ
    return 0.3 * np.sin(2 * np.pi * 220 * times) * ((times >= start_s) & (times < end_s))


def film(path: str, grey: int, sound: np.ndarray, seconds: float = SECONDS) -> None:
    with av.open(path, "w") as out:
        video, audio = out.add_stream("libx264", rate=25), out.add_stream("aac", rate=HZ, layout="mono")
        video.width, video.height = SIZE
        picture = np.full((SIZE[1], SIZE[0], 3), grey, np.uint8)
        for _ in range(round(seconds * 25)):
            out.mux(video.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        out.mux(video.encode())
        samples = sound[None, : round(seconds * HZ)].astype(np.float32)
        frame = av.AudioFrame.from_ndarray(samples, "fltp", "mono")
        frame.sample_rate = HZ
        out.mux(audio.encode(frame))
        out.mux(audio.encode())


def frames(path: str) -> list[np.ndarray]:
    with av.open(path) as video:
        return [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]


def heard(path: str) -> np.ndarray:
    """Loudness of the sound, an rms for each tenth of a second."""
    with av.open(path) as video:
        resampler = av.AudioResampler("flt", "mono", 16_000)
        blocks = [out.to_ndarray() for frame in video.decode(audio=0) for out in resampler.resample(frame)]
    samples = np.concatenate(blocks, axis=1)[0]
    return np.sqrt((samples[: len(samples) // 1600 * 1600].reshape(-1, 1600) ** 2).mean(1))


def test_captions_stand_at_the_bottom_for_their_time(here):
    Path("c.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nHello\n")
    assert main(["compose", "video.mp4", "--captions", "c.srt", "--output", "out.mp4"]) == 0
    pictures = frames("out.mp4")
    bottom = [float(picture[80:].std()) for picture in pictures]
    assert max(bottom[:24] + bottom[51:]) < 3, "before and after there is nothing"
    assert min(bottom[27:48]) > 10
    assert max(float(picture[:60].std()) for picture in pictures) < 3
    assert made_here(Path("out.mp4"))


def test_text_becomes_captions_where_somebody_speaks(here, capsys):
    Path("t.txt").write_text("One. Two. Drei.", encoding="utf-8")
    args = ["compose", "video.mp4", "--text-file", "t.txt", "--output", "out.mp4", "--captions-out", "o.srt"]
    assert main([*args, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"event": "composed", "video": "out.mp4", "captions": 3}
    times = [line for line in Path("o.srt").read_text(encoding="utf-8").splitlines() if "-->" in line]
    assert times[0].startswith("00:00:01,0") or times[0].startswith("00:00:00,9")
    assert times[-1][-12:] < "00:00:02,150"


def test_music_lies_under_the_voice_and_gives_way(here):
    soundfile.write("m.wav", 0.5 * np.sin(np.arange(HZ) * 0.2), HZ)
    args = ["compose", "video.mp4", "--music", "m.wav", "--music-db", "-10", "--duck-db", "-20"]
    assert main([*args, "--output", "out.mp4"]) == 0
    quiet = hum(9, 9)
    film("silent.mp4", GREY, quiet)
    assert main(["compose", "silent.mp4", *args[2:], "--output", "bed.mp4"]) == 0
    before, with_music, bed = heard("video.mp4"), heard("out.mp4"), heard("bed.mp4")
    assert before[3] < 0.001
    assert with_music[3] == pytest.approx(bed[3], rel=0.3), "at full level in the pause"
    assert with_music[15] == pytest.approx(before[15], rel=0.15), "the voice is not drowned"
    assert bed[22] > 0.05, "one second of music lasts for three"
    assert with_music[-1] < bed[12], "it fades out"


def test_intro_and_outro_come_before_and_after(here):
    Image.new("RGB", (300, 100), (250, 0, 0)).save("intro.png")
    film("outro.mp4", 200, hum(0, 1), 1.0)
    Path("c.vtt").write_text("WEBVTT\n\n00:01.000 --> 00:02.000\nHello\n")
    args = ["compose", "video.mp4", "--intro", "intro.png", "--still-s", "2", "--outro", "outro.mp4"]
    assert main([*args, "--captions", "c.vtt", "--captions-out", "c.srt", "--output", "out.mp4"]) == 0
    pictures = frames("out.mp4")
    assert len(pictures) == pytest.approx(25 * 6, abs=2)
    centre = [picture[60, 80] for picture in pictures]
    assert centre[25][0] > 200 > 60 > centre[25][1], "the intro's red"
    assert pictures[25][5, 80].max() < 30, "on black, not stretched"
    assert abs(int(centre[60][0]) - GREY) < 12
    assert abs(int(centre[140][0]) - 200) < 12
    loud = heard("out.mp4")
    assert max(loud[:18]) < 0.01 < min(loud[32:38])
    assert "00:00:03,000 --> 00:00:04,000" in Path("c.srt").read_text()


@pytest.mark.parametrize("corner", ["top-left", "top-right", "bottom-left", "bottom-right"])
def test_a_logo_keeps_its_transparency_in_its_corner(here, corner):
    logo = np.zeros((40, 40, 4), np.uint8)
    logo[10:30, 10:30] = (0, 255, 0, 255)
    Image.fromarray(logo).save("logo.png")
    args = ["compose", "video.mp4", "--logo", "logo.png", "--logo-corner", corner, "--logo-width", "0.25"]
    assert main([*args, "--output", "out.mp4"]) == 0
    picture = frames("out.mp4")[30].astype(int)
    green = (picture[..., 1] - picture[..., 0]) > 60
    y, x = (float(places.mean()) for places in np.nonzero(green))
    assert (y < 60) == corner.startswith("top")
    assert (x < 80) == corner.endswith("left")
    assert green.sum() == pytest.approx(400, rel=0.25), "only the middle is opaque"


def test_a_video_within_the_video_is_as_wide_as_asked(here):
    film("inset.mp4", 220, hum(0, 1), 1.0)
    args = ["compose", "video.mp4", "--picture", "inset.mp4", "--picture-width", "0.5"]
    assert main([*args, "--output", "out.mp4"]) == 0
    pictures = frames("out.mp4")
    for at in (5, 60):  # it is shorter, and begins again
        bright = pictures[at][..., 0] > 180
        assert bright.sum() == pytest.approx(80 * 60, rel=0.1)
        assert bright[110, 150]


@pytest.mark.parametrize(("ending", "codec"), [("webm", "vp9"), ("gif", "gif")])
def test_other_kinds_of_files_are_written(here, ending, codec):
    assert main(["compose", "video.mp4", "--output", f"out.{ending}"]) == 0
    with av.open(f"out.{ending}") as video:
        assert video.streams.video[0].codec_context.name == codec
        assert [one.codec_context.name for one in video.streams.audio] == (
            ["opus"] if ending == "webm" else []
        )
        assert video.duration / 1e6 == pytest.approx(SECONDS, abs=0.15)
        assert abs(int(next(video.decode(video=0)).to_ndarray(format="rgb24")[60, 80, 0]) - GREY) < 12


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--output", "out.avi"], "has no supported video extension"),
        (["--output", "gone/out.mp4"], "no folder"),
        (["--output", "mine.mp4"], "not made by Live Avatar"),
        (["--output", "out.mp4", "--captions", "gone.srt"], "gone.srt does not exist"),
        (["--output", "out.mp4", "--music", "mine.mp4"], "cannot be read as sound"),
        (["--output", "out.mp4", "--intro", "mine.mp4"], "cannot be read as a video"),
        (["--output", "out.mp4", "--logo", "l.png", "--logo-width", "7"], "--logo_width is 7"),
        (["--output", "out.mp4", "--intro", "i.png", "--still-s", "nan"], "--still_s is nan"),
        (["--output", "out.mp4", "--music", "video.mp4", "--music-db", "99"], "--music_db is 99"),
        (["--output", "out.mp4", "--captions-out", "o.srt"], "no captions to write"),
        (["--output", "out.mp4", "--text-file", "odd.txt"], "No font here"),
    ],
)
def test_what_cannot_be_composed_is_refused(here, capsys, args, words):
    Path("mine.mp4").write_text("somebody's")
    Path("odd.txt").write_text("\ue123 private")
    assert main(["compose", "video.mp4", *args]) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not Path("out.mp4").exists()
    assert Path("mine.mp4").read_text() == "somebody's"


def test_a_video_of_ours_may_be_replaced(here):
    for _ in range(2):
        assert main(["compose", "video.mp4", "--output", "out.mp4"]) == 0
