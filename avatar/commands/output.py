"""Output of commands: tables for people on a terminal, JSON lines for programs."""

from __future__ import annotations

import codecs
import errno
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.markup import escape

from avatar.errors import AvatarError

PIPE_COLUMNS = 140  # width without a terminal
_READER_GONE = (errno.EPIPE, errno.EIO)  # a pipe without a reader, a closed terminal


@contextmanager
def tolerant_streams() -> Iterator[None]:
    """While inside, printing never fails for lack of a reader or encoding, which must not stop a run.

    Characters that the encoding lacks are written in the file system's encoding, so that printed paths can be
    used.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (TolerantStream(stream) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


class TolerantStream:
    """A text stream that discards output once its reader is gone; otherwise the wrapped stream."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._gone = stream, False
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors=_AS_NAMES)

    def write(self, text: str) -> int:
        """See TextIO. Raises: OSError, unless the reader is gone."""
        if not self._gone:
            try:
                return self._stream.write(text)
            except OSError as error:
                self._lose(error)
        return len(text)

    def flush(self) -> None:
        """See TextIO. Raises: as write()."""
        if not self._gone:
            try:
                self._stream.flush()
            except OSError as error:
                self._lose(error)

    def _lose(self, error: OSError) -> None:
        if error.errno not in _READER_GONE:
            raise error
        self._gone = True
        # The stream's buffered text would fail again when Python exits.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _as_names(error: UnicodeError) -> tuple[bytes, int]:
    """A codec error handler: encode the offending characters in the file system's encoding."""
    assert isinstance(error, UnicodeEncodeError)
    return os.fsencode(error.object[error.start : error.end]), error.end


_AS_NAMES = "avatar-as-names"
codecs.register_error(_AS_NAMES, _as_names)


def console(stream: TextIO | None = None) -> Console:
    """A console on a stream, by default standard output; without colours if it is not a terminal."""
    stream = stream or sys.stdout
    return Console(
        file=stream, width=None if stream.isatty() else PIPE_COLUMNS, highlight=False, soft_wrap=False
    )


def write_json(data: Any) -> None:
    """One JSON document on one line of standard output."""
    text = json.dumps(data, default=_plain, ensure_ascii=False)
    # File names that are not valid Unicode contain lone surrogates, which JSON can only hold escaped.
    sys.stdout.write(text.encode(errors="backslashreplace").decode() + "\n")
    sys.stdout.flush()


def show_error(error: AvatarError, as_json: bool = False) -> None:
    """Print an error and its remedy, to standard error or as the last JSON line on standard output."""
    if as_json:
        write_json(
            {
                "event": "error",
                "kind": type(error).__name__,
                "message": error.message,
                "remedy": error.remedy,
                "exit_code": error.exit_code,
            }
        )
        return
    out = console(sys.stderr)
    out.print(f"[bold red]error:[/] {escape(error.message)}", soft_wrap=True)
    if error.remedy:
        out.print(escape(error.remedy), soft_wrap=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} is no JSON")
