"""The command line as a whole: its words, and the real thing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from avatar.cli import main, with_underscores

ROOT = Path(__file__).parent.parent


def test_dashes_become_underscores_in_names_alone():
    given = ["generate", "--num-clip", "3", "--output=my-file.mp4", "--prompt", "a-b", "-h", "--"]
    assert with_underscores(given) == [
        "generate",
        "--num_clip",
        "3",
        "--output=my-file.mp4",
        "--prompt",
        "a-b",
        "-h",
        "--",
    ]


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["fly"],
        ["--verb", "presets"],
        ["generate"],
        ["generate", "--image", "a", "--audio", "b", "--sise", "1*1"],
        ["generate", "--image", "a", "--audio", "b", "--see", "1"],  # no abbreviations
        ["generate", "--image", "a", "--audio", "b", "--seed", "x"],
        ["generate", "--image", "a", "--audio", "b", "--offload_model", "maybe"],
        ["generate", "--image", "a", "--audio", "b", "--seed"],
    ],
)
def test_unknown_words_end_with_two(argv, capsys):
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_the_real_command_line_makes_a_real_preview(tmp_path):
    """As a user runs it: the preview engine, a drawn portrait with its points, a real clip of speech."""
    speech = sorted((ROOT / "tests/data/speech").glob("*.flac"))[0]
    argv = [
        sys.executable,
        "-m",
        "avatar",
        "generate",
        "--image",
        "assets/portraits/captain.png",
        "--audio",
        speech,
    ]
    argv += ["--preset", "cpu-preview", "--size", "256*256", "--output", tmp_path / "out.mp4"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'out.mp4'}\n"
    with av.open(str(tmp_path / "out.mp4")) as video:
        assert video.streams.video[0].average_rate == 25
        frames = [frame.to_ndarray(format="gray") for frame in video.decode(video=0)]
    assert len(frames) >= soundfile.info(speech).duration * 25 - 1
    assert max(np.abs(frames[0].astype(int) - frame).max() for frame in frames) > 30  # it moves
