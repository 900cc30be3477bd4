"""`compare` end to end: videos that are made, and finished ones; what fails, is killed, or is not ours."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from avatar.cli import main
from avatar.commands import compare as command
from avatar.errors import DoesNotFit
from avatar.media.side_files import made_here
from tests.commands.surroundings import lines

ROOT = Path(__file__).parents[2]
FACE = ROOT / "assets/portraits/astronaut.jpg"
SPEECH = ROOT / "tests/data/speech/01_flite.flac"
MAKE = ["compare", "--image", str(FACE), "--audio", str(SPEECH)]
SMALL = ["--preset", "cpu-preview", "--vary", "size=320*320,256*256"]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def talking(tmp_path_factory) -> Path:
    """A video of the preview engine, long enough to be measured in all ways."""
    folder = tmp_path_factory.mktemp("talking")
    samples, rate = soundfile.read(ROOT / "assets/speech/hello-en.flac")
    soundfile.write(folder / "s.wav", samples[: 6 * rate], rate)
    made = ["generate", "--image", str(FACE), "--audio", str(folder / "s.wav"), "--preset", "cpu-preview"]
    assert main([*made, "--size", "320*320", "--output", str(folder / "a.mp4")]) == 0
    return folder / "a.mp4"


@dataclass(frozen=True)
class Compared:
    """A comparison that was made in out/ of a folder, and its result as --json prints it."""

    folder: Path
    result: dict[str, Any]


@pytest.fixture(scope="module")
def compared(tmp_path_factory) -> Compared:
    """The preview engine at two sizes, end to end; to be copied by whoever changes it."""
    folder, printed = tmp_path_factory.mktemp("compared"), io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
        assert main([*MAKE, *SMALL, "--output", "out", "--json"]) == 0
    return Compared(folder, json.loads(printed.getvalue().splitlines()[-1]))


def delayed(video: Path, target: Path, later_ms: int) -> Path:
    """The same pictures, with the sound so much later."""
    with av.open(str(video)) as source, av.open(str(target), "w") as out:
        sound = source.streams.audio[0]
        streams = {kind[0].index: out.add_stream_from_template(kind[0]) for kind in
                   (source.streams.video, source.streams.audio)}  # fmt: skip
        for packet in source.demux():
            if packet.dts is None:
                continue
            shift = round(later_ms / 1000 / packet.time_base) if packet.stream.index == sound.index else 0
            packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
            packet.stream = streams[packet.stream.index]
            out.mux(packet)
    return target


def test_the_preview_engine_is_compared_end_to_end(monkeypatch, compared):
    monkeypatch.chdir(compared.folder)
    result = compared.result
    large, small = result["videos"]
    assert [row["label"] for row in (large, small)] == ["size 320*320", "size 256*256"]
    for row in (large, small):
        assert row["state"] == "done"
        assert abs(row["lip_sync"]["offset_ms"]) < 40
        assert row["lip_sync"]["closures"] > 3
        assert row["run"]["average_fps"] > 0
        assert row["run"]["out_of_memory"] is False
        assert row["likeness"]["ssim"]["mean"] > 0.5
        assert row["smoothness"]["ratio"] is None, "the preview has no clips"
        assert made_here(Path("out") / row["file"])
    assert (large["width"], small["width"]) == (320, 256)
    assert json.loads(Path("out/compare.json").read_text()) == result
    table = Path("out/compare.md").read_text()
    for words in ("OOM?", "average fps", "first frame, s", "sound after mouth, ms", "size 320\\*320"):
        assert words in table
    page = Path("out/compare.html").read_text()
    assert page.count("<video ") == 2
    assert "http" not in page.replace("http-equiv", ""), "nothing comes from elsewhere"
    with av.open("out/side-by-side.mp4") as beside:
        picture = next(beside.decode(video=0))
        assert picture.width == 3 * 256
        assert len(beside.streams.audio) == 1


@pytest.fixture
def two(here: Path) -> list[str]:
    """A portrait of two people, and what each of them says."""
    names = ("astronaut.jpg", "mara.png")
    faces = [Image.open(ROOT / "assets/portraits" / name).convert("RGB").resize((256, 256)) for name in names]
    Image.fromarray(np.concatenate([np.asarray(face) for face in faces], axis=1)).save("us.png")
    voices = [f"audio={ROOT}/tests/data/speech/{name}.flac" for name in ("01_flite", "06_kokoro")]
    speakers = [("--speaker", f"face={n},{voice}") for n, voice in zip((2, 1), voices)]
    return ["compare", "--image", "us.png", *speakers[0], *speakers[1], "--no_side_by_side"]


def test_several_speakers_are_the_same_in_every_video(two, capsys):
    wanted = ["--preset", "cpu-preview", "--vary", "size=512*256,448*224", "--output", "out", "--json"]
    assert main([*two, *wanted]) == 0
    (result,) = lines(capsys)
    assert result["speech"] == "01_flite.flac + 06_kokoro.flac"
    for row in result["videos"]:
        assert row["state"] == "done"
        assert row["lip_sync"]["why"] == "each speaker is measured by its own voice"
        assert [one["name"] for one in row["speakers"]] == ["1: 01_flite.flac", "2: 06_kokoro.flac"]
        for one in row["speakers"]:
            assert abs(one["lip_sync"]["offset_ms"]) < 40
            assert one["lip_sync"]["closures"] > 3
            assert one["face_share"] == 1
    table = Path("out/compare.md").read_text()
    assert "| size 512\\*256 – 1: 01\\_flite.flac |" in table
    finished = ["compare", "out/videos/size_512x256.mp4", "out/videos/size_448x224.mp4", "--output", "again"]
    assert main([*finished, "--json", "--no_side_by_side"]) == 0
    (again,) = lines(capsys)
    for row, before in zip(again["videos"], result["videos"], strict=True):
        assert [one["lip_sync"] for one in row["speakers"]] == [one["lip_sync"] for one in before["speakers"]]
    Path("out/videos/size_448x224.voices.mka").unlink()
    assert main([*finished, "--json", "--no_side_by_side"]) == 0
    (again,) = lines(capsys)
    assert {one["lip_sync"]["why"] for one in again["videos"][1]["speakers"]} == {
        "its own voice is not kept beside the video"
    }


@pytest.mark.slow
def test_texts_of_speakers_are_spoken_once_for_all_videos(two, capsys, monkeypatch):
    said = ("Bob may put up a map before lunch, maybe.", "Maybe Mary put it up on Monday, my boy.")
    texts = [part for n in (1, 2) for part in ("--speaker", f"face={n},text={said[n - 1]}")]
    ask = [*two[:3], *texts, "--no_side_by_side", "--preset", "cpu-preview", "--output", "out", "--json"]
    assert main([*ask, "--vary", "size=512*256,448*224"]) == 0
    (result,) = lines(capsys)
    assert Path("out/spoken.wav").is_file()
    for row in result["videos"]:
        assert all(abs(one["lip_sync"]["offset_ms"]) < 40 for one in row["speakers"])
    monkeypatch.setattr(command, "open_engine", lambda *_, **__: pytest.fail("an engine was opened"))
    monkeypatch.setattr("avatar.speech.dialogue.Dialogue.write", lambda *_: pytest.fail("spoken again"))
    assert main([*ask, "--vary", "size=512*256,448*224"]) == 0
    assert lines(capsys) == [result]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--speaker", "face=1,text=Hi."), "Two speakers have the same face"),
        (("--speaker", "face=7"), "There is no face 7 in us.png"),
        (("--audio", str(SPEECH)), "and a recording for all"),
        (("--text", "Hi."), "There are several speakers, and one text for all"),
        (("--framing", "head"), "Several speakers and framing exclude each other"),
        (("--random_weights",), "With --random_weights no files are used"),
        (("--captions", "off"), "--captions"),
    ],
)
def test_speakers_that_do_not_fit_are_refused_at_once(flags, words, two, capsys, monkeypatch):
    monkeypatch.setattr(command, "open_engine", lambda *_, **__: pytest.fail("an engine was opened"))
    ask = [*two, "--preset", "cpu-preview", "--vary", "size=512*256,448*224", "--output", "out"]
    try:
        code = main([*ask, *flags])
    except SystemExit as refused:
        code = refused.code
    assert code == 2
    assert words in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_the_self_test_engine_is_compared_end_to_end(here, capsys):
    wanted = ["--preset", "self-test", "--vary", "infer_frames=48,32", "--vary", "sample-steps=1"]
    assert main([*MAKE, *wanted, "--output", "out", "--json", "--no_side_by_side"]) == 0
    (result,) = lines(capsys)
    assert [row["settings"] for row in result["videos"]] == [
        {"infer_frames": 48, "sample_steps": 1},
        {"infer_frames": 32, "sample_steps": 1},
    ]
    borders = [row["smoothness"]["borders"] for row in result["videos"]]
    assert borders == [1, 2], "69 frames: borders at 45, and at 29 and 61"
    for row in result["videos"]:
        assert row["smoothness"]["flow"]["ratio"] > 0
        assert (Path("out") / row["seam"]).is_file()
        assert row["lip_sync"]["why"], "noise has no face, and that is reported"
    assert result["side_by_side"] is None


def test_finished_videos_are_measured(here, capsys, talking):
    late = delayed(talking, here / "late.mp4", 120)
    args = ["compare", str(talking), str(late), "--output", "out", "--clip_frames", "48", "--json"]
    args += ["--no_side_by_side"]
    assert main([*args, "--label", "as made", "--label", "late"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    first, second = result["videos"]
    assert [row["label"] for row in (first, second)] == ["as made", "late"]
    assert abs(first["lip_sync"]["offset_ms"]) < 20
    assert second["lip_sync"]["offset_ms"] - first["lip_sync"]["offset_ms"] == pytest.approx(120, abs=15)
    assert second["lip_sync"]["confidence"] > 0.5
    assert first["naturalness"]["blinks"] is not None
    assert second["smoothness"]["borders"] == 3
    assert not second["smoothness"]["seam_is_seen"]
    assert first["run"]["preset"] == "cpu-preview", "its report was beside it"
    assert second["run"] is None


def test_what_was_made_and_measured_is_not_again(here, capsys, monkeypatch, compared):
    shutil.copytree(compared.folder / "out", "out")
    before = {path: path.stat().st_mtime_ns for path in Path("out/videos").iterdir()}
    monkeypatch.setattr(command, "open_engine", lambda *_, **__: pytest.fail("an engine was opened"))
    monkeypatch.setattr("avatar.compare.measuring.measure", lambda *_, **__: pytest.fail("measured again"))
    assert main([*MAKE, *SMALL, "--output", "out", "--json", "--no_side_by_side"]) == 0
    assert {path: path.stat().st_mtime_ns for path in Path("out/videos").iterdir()} == before
    assert lines(capsys) == [{**compared.result, "side_by_side": None}]


@pytest.mark.slow
def test_other_inputs_make_other_videos_in_the_same_folder(here, capsys, compared):
    shutil.copytree(compared.folder / "out", "out")
    other = str(ROOT / "tests/data/speech/00_flite.flac")
    one = ["--preset", "cpu-preview", "--vary", "size=256*256", "--output", "out", "--json"]
    assert main([*MAKE[:-1], other, *one, "--no_side_by_side"]) == 0
    (after,) = lines(capsys)[0]["videos"]
    assert after["state"] == "done"
    assert after["num_frames"] != compared.result["videos"][1]["num_frames"]


def test_a_comparison_is_known_for_one_before_its_first_video(here, monkeypatch):
    def killed(*_args, **_more):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "open_engine", killed)
    assert main([*MAKE, *SMALL, "--output", "out"]) == 130
    result = json.loads(Path("out/compare.json").read_text())
    assert {row["state"] for row in result["videos"]} == {"waiting"}


@pytest.mark.slow
def test_a_comparison_that_is_killed_goes_on_where_it_was(here):
    args = [sys.executable, "-m", "avatar", *MAKE, "--preset", "cpu-preview", "--output", "out", "--json"]
    args += ["--vary", "size=320*320,256*256", "--no_side_by_side"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(args, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    first = Path("out/videos/size_320x320.report.json")
    until = time.monotonic() + 120
    while not first.exists() and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    made = first.stat().st_mtime_ns
    done = subprocess.run(args, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert [row["state"] for row in result["videos"]] == ["done"] * 2
    assert first.stat().st_mtime_ns == made


class Full:
    """An engine whose memory runs out."""

    label = "full"

    def stream(self, request):
        raise DoesNotFit("GPU 0 ran out of memory.", "Take fewer frames.")
        yield

    def cancel(self) -> None: ...

    def close(self) -> None: ...


@pytest.mark.slow
def test_memory_that_runs_out_is_a_row_and_not_the_end(here, capsys, monkeypatch):
    opened = []
    real = command.open_engine

    def first_is_full(preset, **kwargs):
        opened.append(preset.fallback.order)
        return Full() if len(opened) == 1 else real(preset, **kwargs)

    monkeypatch.setattr(command, "open_engine", first_is_full)
    # Two presets whose models are held otherwise, so that each has an engine of its own.
    wanted = ["--preset", "self-test", "--vary", "weight_dtype=fp32,bf16", "--output", "out", "--json"]
    assert main([*MAKE, *wanted, "--no_side_by_side"]) == 0
    (result,) = lines(capsys)
    full, made = result["videos"]
    assert (full["state"], made["state"]) == ("out_of_memory", "done")
    assert "ran out of memory" in full["error"]
    assert "| weight\\_dtype fp32 | – | yes |" in Path("out/compare.md").read_text()
    assert main([*MAKE, *wanted, "--no_side_by_side"]) == 0
    assert len(opened) == 2, "what ran out of memory is a result, and not tried again"
    assert opened == [(), ()], "no rung of the ladder is taken in a comparison"


@pytest.mark.slow
def test_random_weights_are_timed_without_any_file(here, capsys):
    args = ["compare", "--random-weights", "--blocks", "12", "--preset", "self-test", "--output", "out"]
    assert main([*args, "--vary", "infer_frames=32", "--vary", "enable_online_decode=true", "--json"]) == 0
    (result,) = lines(capsys)
    (row,) = result["videos"]
    assert (row["state"], row["file"], row["error"]) == ("done", None, None)
    assert row["run"]["average_fps"] > 0
    assert row["run"]["host_peak_bytes"] > 2**20
    assert "OOM?" in Path("out/compare.md").read_text()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "nothing to compare"),
        (["--vary", "infer_frame=48"], "no setting 'infer_frame'"),
        (["--vary", "infer_frames"], "names no values"),
        (["--vary", "infer_frames=a"], "infer_frames cannot be 'a'"),
        (["--vary", "infer_frames=48,48"], "a value twice"),
        (["--vary", "seed=1", "--vary", "seed=2"], "varied twice"),
        (["--vary", "preset=nope"], "nope"),
        (["--vary", "seed=1"], "Give --image, and --audio, --text or --speaker"),
        (["--vary", f"seed={','.join(map(str, range(65)))}"], "65 videos"),
        (["gone.mp4"], "gone.mp4 does not exist"),
        (["gone.mp4", "--vary", "seed=1"], "compared as they are"),
        (["--vary", "seed=1", "--image", str(SPEECH), "--audio", str(SPEECH)], "01_flite.flac"),
        ([*MAKE[1:], "--vary", "seed=1,2", "--seed", "3"], "both fixed and varied"),
        ([*MAKE[1:], "--preset", "cpu-preview", "--vary", "infer_frames=48"], "cannot honour infer_frames"),
        ([*MAKE[1:], "--preset", "self-test", "--vary", "infer_frames=47"], "infer_frames"),
    ],
    ids=lambda value: "".join(char for char in str(value)[-20:] if char.isalnum()),
)
def test_what_cannot_be_compared_is_refused_at_once(here, capsys, args, words):
    assert main(["compare", *args, "--output", "out"]) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not list(Path(".").glob("out/videos/*"))


def test_a_file_that_is_no_video_is_refused(here, capsys):
    Path("a.mp4").write_text("no video")
    assert main(["compare", "a.mp4", "--output", "out"]) == 2
    assert "a.mp4 cannot be read as a video" in capsys.readouterr().err


def test_a_folder_with_other_things_is_left_alone(here, capsys, talking):
    Path("out").mkdir()
    Path("out/thesis.txt").write_text("mine")
    assert main(["compare", str(talking), "--output", "out"]) == 2
    assert "holds no comparison" in capsys.readouterr().err
    assert [path.name for path in Path("out").iterdir()] == ["thesis.txt"]


def test_a_video_without_sound_is_compared_and_says_so(here, capsys):
    with av.open("mute.mp4", "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width = stream.height = 64
        for _ in range(10):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), "rgb24")))
        out.mux(stream.encode())
    assert main(["compare", "mute.mp4", "--output", "out", "--json"]) == 0
    (row,) = lines(capsys)[-1]["videos"]
    assert row["lip_sync"]["offset_ms"] is None
    assert "no audio track" in row["lip_sync"]["why"]
