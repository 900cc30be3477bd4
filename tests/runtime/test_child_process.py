"""A process of our own: which modules it finds, and how it is ended."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from avatar.geometry import Size
from avatar.media.sample_inputs import write_sample
from avatar.runtime.child_process import ROOT, Child, module_folders

TRAP = "raise SystemExit('a module of the current folder was imported')"


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """A folder in which a user keeps files that are named like modules."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("queue.py", "av.py", "numpy.py", "tempfile.py"):
        (folder / name).write_text(TRAP)
    return folder


def test_generate_where_files_are_named_like_modules(trap: Path):
    portrait, speech = write_sample(trap, Size(96, 96), 1.0)
    command = ["generate", "--preset", "self-test", "--image", portrait.name, "--audio", speech.name]
    done = subprocess.run(
        [sys.executable, "-m", "avatar", *command, "--output", "out.mp4"],
        cwd=trap,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (trap / "out.mp4").stat().st_size > 0


def test_the_current_folder_is_no_place_for_modules(trap: Path, monkeypatch):
    monkeypatch.chdir(trap)
    path = [str(trap), "", str(ROOT), "/lib/mine", os.path.dirname(os.__file__)]
    assert module_folders(path) == [os.path.dirname(os.__file__), str(ROOT), "/lib/mine"]


def test_the_packages_folder_stays_but_behind_the_standard_library(monkeypatch):
    monkeypatch.chdir(ROOT)
    standard = os.path.dirname(os.__file__)
    assert module_folders([str(ROOT), standard, "/lib/mine"]) == [standard, str(ROOT), "/lib/mine"]
    assert module_folders([standard]) == [standard, str(ROOT)]


def test_a_folder_that_is_gone_keeps_no_child_from_starting(tmp_path: Path, monkeypatch):
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert module_folders([str(ROOT)]) == [str(ROOT)]


def test_who_waits_for_a_killed_child_sees_its_end():
    child = Child("tests.fixtures.silent")
    ended: list[type[BaseException]] = []

    def read() -> None:
        try:
            child.link.recv()
        except (EOFError, OSError) as error:
            ended.append(type(error))

    reader = threading.Thread(target=read)
    reader.start()
    child.kill()
    reader.join(20)
    assert len(ended) == 1
    assert not child.alive
    assert child.link.closed
