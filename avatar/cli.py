"""The command line: its commands, and the mapping of errors to exit codes."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from importlib import import_module

from avatar.commands.output import show_error, tolerant_streams
from avatar.commands.signals import ended_by_signals
from avatar.errors import AvatarError, BadInput, Cancelled
from avatar.runtime.child_process import gpu_environment

COMMANDS = (
    *("generate", "speak", "voices", "live", "batch", "join", "compare", "compose"),
    *("report", "presets", "plan", "doctor", "download", "bench", "worker"),
)
EXIT_CODES = """exit codes: 0 done, 1 failed, 2 a file or setting cannot be used, 3 weights missing,
4 does not fit this machine, 5 the engine's process was lost, 130 stopped,
129 by a hang-up, 143 by SIGTERM"""


def build_parser(commands: Sequence[str] = COMMANDS) -> argparse.ArgumentParser:
    """The parser of the command line; each command's module adds its own part by add(subparsers).

    commands: those that the line can have; others' modules, which take time to import, are left alone.
    """
    parser = argparse.ArgumentParser(
        prog="python -m avatar",
        description="Talking avatars that stream while they are generated.",
        epilog=f"Flags may be written with underscores or dashes. {EXIT_CODES}",
        allow_abbrev=False,
    )
    parser.add_argument("--verbose", action="store_true", help="log what happens, to standard error")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in commands:
        import_module(f"avatar.commands.{name}").add(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. argv: without the program's name; None: sys.argv."""
    with tolerant_streams():
        return _main(argv)


def _main(argv: Sequence[str] | None) -> int:
    try:
        words = with_underscores(sys.argv[1:] if argv is None else argv)
        named = words[1:2] if words[:1] == ["--verbose"] else words[:1]
        args = build_parser(named if set(named) & set(COMMANDS) else COMMANDS).parse_args(words)
    except BadInput as error:  # raised by a flag's own check
        show_error(error, as_json=False)
        return error.exit_code
    os.environ.update(gpu_environment())  # as in every subprocess; for `bench` and `worker`
    level = logging.INFO if args.verbose else logging.ERROR
    clock = "%(asctime)s " if args.verbose else ""
    logging.basicConfig(level=level, format=f"{clock}%(levelname)s %(name)s: %(message)s")
    # torchrun ends its workers by SIGTERM, which must take effect immediately.
    ending = nullcontext() if args.command == "worker" else ended_by_signals()
    try:
        with ending:
            code: int = args.run(args)
        return code
    except AvatarError as error:
        show_error(error, as_json=getattr(args, "json", False))
        return error.exit_code
    except KeyboardInterrupt as interrupt:
        stopped = Cancelled("Stopped.")
        stopped.exit_code = 128 + getattr(interrupt, "number", signal.SIGINT)
        show_error(stopped, as_json=getattr(args, "json", False))
        return stopped.exit_code


def with_underscores(argv: Sequence[str]) -> list[str]:
    """Normalise flag names: --num-clip → --num_clip; values are unchanged."""
    return [_underscored(word) if word.startswith("--") and len(word) > 2 else word for word in argv]


def _underscored(flag: str) -> str:
    name, equals, value = flag.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value
