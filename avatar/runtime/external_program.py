"""A program of the user's own that enlarges a finished video; no shell ever sees its words."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from avatar.errors import AvatarError, BadInput, Cancelled
from avatar.geometry import Size

log = logging.getLogger(__name__)

COMMAND = "command"  # by what a video was enlarged, in its report
NEEDED = ("{input}", "{output}")
POLL_S = 0.1
END_S = 3.0  # that a program has to end by itself once it is asked to
FIRST_S, S_PER_S = 600.0, 60.0  # time that it may take: so much, and so much for each second of video
_LAST_BYTES = 2000  # of what it wrote, for the log


def read_command(text: str) -> tuple[str, ...]:
    """The words of a command such as "upscale {input} {output}". Raises: BadInput."""
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise BadInput(f"The upscaling command is not understood ({error}).", "Check its quotes.") from error
    for place in NEEDED:
        if not any(place in word for word in words):
            raise BadInput(
                f"The upscaling command has no {place}.", 'Write it as "PROGRAM {input} {output}".'
            )
    if shutil.which(words[0]) is None:
        raise BadInput(f"There is no program {words[0][:60]!r} to upscale with.", "Give its whole path.")
    return words


class Program:
    """A command with places for a video, for what it is to write, and for the size to aim at."""

    def __init__(self, words: Sequence[str]) -> None:
        """words: see read_command; {width} and {height} are filled in as well."""
        self._words = tuple(words)

    @property
    def name(self) -> str:
        """The program's name, without its folder."""
        return Path(self._words[0]).name

    def running(
        self, given: Path, made: Path, size: Size, seconds: float, cancelled: Callable[[], bool]
    ) -> Iterator[None]:
        """Run it from one video to another, yielding while it runs; it is killed when this is closed.

        seconds: of the video, which set how long it may take. cancelled: ends it.
        Raises: AvatarError when it fails, takes too long or writes nothing; Cancelled.
        """
        name, limit_s = self.name, FIRST_S + S_PER_S * seconds
        begun = time.monotonic()
        with tempfile.TemporaryFile() as said:
            try:
                process = subprocess.Popen(
                    self._filled(given, made, size),
                    stdin=subprocess.DEVNULL,
                    stdout=said,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # what it starts is ended with it
                )
            except OSError as error:
                raise AvatarError(f"{name} cannot be started ({error.strerror}).") from error
            try:
                while process.poll() is None:
                    if cancelled():
                        raise Cancelled("Upscaling was stopped.")
                    if time.monotonic() - begun > limit_s:
                        raise AvatarError(f"{name} was ended after {limit_s:.0f} s without a result.")
                    yield
                    time.sleep(POLL_S)
            finally:
                _end(process)
            if process.returncode != 0:
                said.seek(max(0, said.tell() - _LAST_BYTES))
                log.error("%s: %s", name, said.read().decode(errors="replace").strip())
                how = f"with code {process.returncode}" if process.returncode > 0 else "by a signal"
                raise AvatarError(f"{name} ended {how}.", "The log has its last words.")
        if not made.is_file() or made.stat().st_size == 0:
            raise AvatarError(f"{name} wrote no video.", "It must write to {output}.")

    def _filled(self, given: Path, made: Path, size: Size) -> list[str]:
        places = {"{input}": str(given.resolve()), "{output}": str(made.resolve())}
        places |= {"{width}": str(size.width), "{height}": str(size.height)}
        filled = []
        for word in self._words:
            for place, value in places.items():
                word = word.replace(place, value)
            filled.append(word)
        return filled


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a program and whatever it has started; first by asking."""
    if process.poll() is not None:
        return
    _signal(process, hard=False)
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        _signal(process, hard=True)
        process.wait(END_S)


def _signal(process: subprocess.Popen[bytes], *, hard: bool) -> None:
    if sys.platform == "win32":
        process.kill()
        return
    try:
        os.killpg(process.pid, signal.SIGKILL if hard else signal.SIGTERM)
    except ProcessLookupError:  # it has ended meanwhile
        log.debug("the program had ended")
