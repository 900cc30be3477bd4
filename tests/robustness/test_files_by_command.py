"""Bad pictures and sounds through the command line."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.robustness.bad_files import ACCEPTED, EITHER, PICTURES, REFUSED, SOUNDS, Row
from tests.robustness.conftest import LEAKS, PATIENCE_S, ROOT

Command = Callable[..., Any]


def put(row: Row, folder: Path) -> str:
    """Makes the row's file, and returns the name to give it by."""
    row.make(folder / row.name)
    return row.name


def check(row: Row, answer: Any) -> None:
    assert answer.code in {REFUSED: (2,), ACCEPTED: (0,), EITHER: (0, 2)}[row.outcome], answer.reported
    if answer.code == 2:
        assert re.search(row.words, answer.reported), answer.reported
        assert answer.left == set()
        assert not answer.opened, "refused before an engine opens"
    else:
        assert answer.left == {"out.mp4", "out.thumb.jpg", "out.report.json"}


@pytest.mark.parametrize("row", PICTURES, ids=str)
def test_portraits(command: Command, row: Row) -> None:
    image = put(row, Path.cwd())
    check(row, command("generate", f"--image={image}", "--audio", "good.wav", "--output", "out.mp4"))


@pytest.mark.parametrize("row", SOUNDS, ids=str)
def test_speeches(command: Command, row: Row) -> None:
    audio = put(row, Path.cwd())
    check(
        row,
        command("generate", "--image", "good.png", "--head_only", f"--audio={audio}", "--output", "out.mp4"),
    )


SAMPLE = [
    *(("--image", row) for row in PICTURES if row.name in ("half.png", "bomb.png", "loop", "fifo", "zero")),
    *(("--audio", row) for row in SOUNDS if row.name in ("passwd.m3u8", "crowd.wav", "fifo", "memory")),
    *(("--audio", row) for row in SOUNDS if row.name in ("two\nlines.wav", "\udcff\udcfe.wav", "choir.wav")),
]


@pytest.mark.slow
@pytest.mark.parametrize(("flag", "row"), SAMPLE, ids=str)
def test_a_sample_as_processes(command: Command, tmp_path: Path, flag: str, row: Row) -> None:
    """The same from outside: `python -m avatar`, with what the system itself makes of a path."""
    put(row, Path.cwd())
    scratch = tmp_path / "scratch"
    given = {"--image": "good.png", "--audio": "good.wav", flag: row.name}
    argv = [sys.executable, "-m", "avatar", "generate", "--output", "out.mp4", *sum(given.items(), ())]
    ended = subprocess.run(
        argv,
        env={"PYTHONPATH": str(ROOT), "TMPDIR": str(scratch), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=3 * PATIENCE_S,
    )
    reported = (ended.stdout + ended.stderr).decode(errors="replace")
    assert ended.returncode == 2, reported
    assert re.search(row.words, reported), reported
    assert not LEAKS.search(reported)
    assert list(scratch.iterdir()) == []
    assert not Path("out.mp4").exists()
