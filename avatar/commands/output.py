"""How commands print: tables for people on a terminal, JSON lines for programs."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.markup import escape

from avatar.errors import AvatarError

PIPE_COLUMNS = 140  # width where there is no terminal to ask


def console(stream: TextIO | None = None) -> Console:
    """A console on a stream, standard output by default; without colours where it is no terminal."""
    stream = stream or sys.stdout
    return Console(
        file=stream, width=None if stream.isatty() else PIPE_COLUMNS, highlight=False, soft_wrap=False
    )


def write_json(data: Any) -> None:
    """One JSON document on one line of standard output."""
    sys.stdout.write(json.dumps(data, default=_plain, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def show_error(error: AvatarError, as_json: bool = False) -> None:
    """What is wrong and what to do: on standard error, or as the last JSON line on standard output."""
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
