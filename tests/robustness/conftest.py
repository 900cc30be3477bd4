"""What every row must keep: an answer in words, in time, and nothing left behind."""

from __future__ import annotations

import logging
import re
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from avatar.cli import main
from avatar.commands import batch, generate
from avatar.media.ffmpeg import put_on_path
from tests.fixtures.sources import Coloured
from tests.long.runs import Here
from tests.media.media_samples import save, tone, write_wav

ROOT = Path(__file__).resolve().parents[2]
LEAKS = re.compile(rf'Traceback|File "|site-packages|object at 0x|{re.escape(str(ROOT))}')
PATIENCE_S = 30  # for any row; a hang, not a slow machine


@contextmanager
def no_hang() -> Iterator[None]:
    """Raises: TimeoutError when it takes too long."""

    def too_long(*_: object) -> None:
        raise TimeoutError(f"not within {PATIENCE_S} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(PATIENCE_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def everything_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@dataclass
class Answer:
    """What a command came to. left: what it left where it ran; opened: whether an engine was asked."""

    code: int
    reported: str
    left: set[str]
    opened: bool


@pytest.fixture
def command(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> Callable[..., Answer]:
    """Runs one command line in a folder with good.png and good.wav; engines are of plain colours."""
    put_on_path()  # what it unpacks is this process's, not the command's
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    save(here / "good.png")
    write_wav(here / "good.wav", tone(), 16_000)
    opened: list[object] = []

    def open_engine(*given: object, **_: object) -> Here:
        opened.append(given)
        return Here(Coloured())

    monkeypatch.setattr(generate, "open_engine", open_engine)
    monkeypatch.setattr(batch, "open_engine", open_engine)

    def run(*argv: str) -> Answer:
        before = everything_in(here)
        with no_hang():
            try:
                code = main(list(argv))
            except SystemExit as left:
                code = int(left.code or 0)
        printed = capsys.readouterr()
        reported = printed.out + printed.err
        assert not LEAKS.search(reported), reported
        faults = [one.getMessage() for one in caplog.records if one.levelno >= logging.ERROR and one.exc_info]
        assert not faults, "printed as a traceback"
        assert str(tmp_path) not in reported
        assert list(scratch.iterdir()) == []
        return Answer(code, reported, everything_in(here) - before, bool(opened))

    return run
