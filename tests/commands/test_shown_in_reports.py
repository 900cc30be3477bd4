"""What a report says of a video's look, and that `compare` makes videos as `generate` does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from avatar.cli import main
from avatar.runtime.report import read_report
from avatar.runtime.report_columns import configuration, row
from tests.commands.surroundings import NO_GPU

PORTRAIT = Path(__file__).parents[2] / "assets" / "portraits" / "astronaut.jpg"
FAST = ("--preset", "cpu-preview", "--size", "256*256")


@pytest.fixture
def asked(tmp_path, monkeypatch, machine) -> list[str]:
    monkeypatch.chdir(tmp_path)
    machine(NO_GPU)
    with Image.open(PORTRAIT) as opened:
        opened.save("p.png")
    Image.new("RGB", (300, 200), (10, 20, 200)).save("sea.png")
    soundfile.write("s.wav", np.sin(np.arange(24_000) * 0.05).astype(np.float32) * 0.3, 48_000)
    return ["--image", "p.png", "--audio", "s.wav", *FAST]


@pytest.mark.parametrize(
    ("background", "name", "picture"),
    [("green", "green", None), ("#204060", "#204060", None), ("sea.png", "picture", "sea.png")],
)
def test_a_report_names_the_background(background, name, picture, asked, capsys):
    assert main(["generate", *asked, "--background", background, "--output", "o.mp4"]) == 0
    report = read_report(Path("o.report.json"))
    assert (report.background, report.background_picture) == (name, picture)
    assert f"background {picture or name}" in configuration(report)
    capsys.readouterr()
    assert main(["report", "o.report.json", "--json"]) == 0
    [shown] = json.loads(capsys.readouterr().out)["reports"]
    assert shown["background"] == (picture or name)
    assert shown["pose"] is shown["upscaled"] is None


def test_a_plain_report_says_nothing_of_what_is_as_ever(asked):
    assert main(["generate", *asked, "--output", "o.mp4"]) == 0
    report = read_report(Path("o.report.json"))
    assert (report.background, report.pose, report.upscaled) == ("keep", None, None)
    assert configuration(report) == "256*256"
    assert row(report)["motion"] == "normal"


def test_a_report_of_an_earlier_version_is_read(asked):
    assert main(["generate", *asked, "--output", "o.mp4"]) == 0
    path = Path("o.report.json")
    data = json.loads(path.read_text())
    for name in ("background", "background_picture", "pose", "upscaled"):
        del data[name]
    del data["preset"]["generation"]["motion"]
    path.write_text(json.dumps(data))
    report = read_report(path)
    assert configuration(report) == "256*256"
    assert row(report)["background"] == "keep"


def test_compare_makes_what_is_asked_to_be_shown(asked):
    shown = ["--framing", "head", "--aspect", "1:1", "--background", "sea.png"]
    made = ["compare", *asked, "--vary", "seed=1,2", *shown, "--output", "out", "--no_side_by_side"]
    assert main(made) == 0
    data = json.loads(Path("out/compare.json").read_text())
    for one in data["videos"]:
        report = read_report(Path("out") / one["file"].replace(".mp4", ".report.json"))
        assert report.background_picture == "sea.png"
        assert report.width == report.height
    first = Path("out/videos").stat().st_mtime_ns
    assert main(made) == 0
    assert Path("out/videos").stat().st_mtime_ns == first, "nothing is made again"
    Image.new("RGB", (300, 200), (200, 20, 10)).save("sea.png")
    assert main(made) == 0
    assert Path("out/videos").stat().st_mtime_ns != first, "the picture is another"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--face", "9"], "There is no face 9"),
        (["--background", "no.png"], "no picture that is there"),
        (["--background", "transparent"], "Transparent videos are not compared"),
        (["--framing", "legs"], "head, shoulders, half, whole"),
        (["--pose", "no.mp4"], "The preview engine cannot honour pose"),
        (["--pose", "p.png"], "preview engine cannot honour pose"),
    ],
)
def test_compare_refuses_what_cannot_be_shown(flags, words, asked, capsys):
    code = main(["compare", *asked, "--vary", "seed=1,2", *flags, "--output", "out", "--no_side_by_side"])
    said = capsys.readouterr()
    assert code != 0
    assert words in (said.err + said.out + _errors()).replace("\n", " ")


def _errors() -> str:
    path = Path("out/compare.json")
    return path.read_text() if path.is_file() else ""


def test_finished_videos_are_compared_as_they_are(asked, capsys):
    assert main(["compare", "a.mp4", "b.mp4", "--framing", "head", "--output", "out"]) == 2
    assert "compared as they are" in capsys.readouterr().err.replace("\n", " ")
