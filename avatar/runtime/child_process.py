"""A process of our own, with a link to it.

Not multiprocessing.Process: its spawn would import the parent's main module, and with it the whole page.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from avatar.runtime.protocol import Link

log = logging.getLogger(__name__)

HANGUP: signal.Signals | None = getattr(signal, "SIGHUP", None)  # Windows has none
ENDING = tuple(number for number in (signal.SIGINT, signal.SIGTERM, HANGUP) if number is not None)
REAP_S = 10.0  # a killed process should be gone by then
ROOT = Path(__file__).resolve().parents[2]  # where the package lies


class Child:
    """`python -m MODULE … FD`, started at once; link is this end of a socket pair, FD the other."""

    def __init__(self, module: str, *arguments: str, env: Mapping[str, str] | None = None) -> None:
        """env: laid over this process's own environment. Raises: OSError when no process can be started."""
        ours, theirs = socket.socketpair()
        with ours, theirs, _blocked():
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, *arguments, str(theirs.fileno())],
                **handing_over(theirs),
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a terminal's signals are for the parent: it cancels, and drains
                env={
                    **os.environ,
                    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # CUDA counts as NVML does, not the fastest card first
                    **(env or {}),
                    "PYTHONPATH": os.pathsep.join(module_folders(sys.path)),
                },
            )
            self.link = Link(ours.detach())

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def fate(self, patience_s: float = 5.0) -> str:
        """How it ended, as the end of a sentence; waits so long for one that has just hung up."""
        try:
            code = self._process.wait(timeout=patience_s)
        except subprocess.TimeoutExpired:
            return "closed its connection"
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"

    def kill(self) -> None:
        """End it at once, whatever it is doing; see kill_all."""
        kill_all([self])


def handing_over(end: socket.socket) -> dict[str, Any]:
    """How subprocess.Popen leaves a socket open in the child, under the number that it has here."""
    if sys.platform != "win32":
        return {"pass_fds": [end.fileno()]}
    end.set_inheritable(True)
    return {"startupinfo": subprocess.STARTUPINFO(lpAttributeList={"handle_list": [end.fileno()]})}


def deaf_to_signals() -> None:
    """Leave signals that end a program to the parent, whoever sends them; a hang-up of the link ends a child.

    A child calls it first; until then those are blocked.
    """
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


@contextmanager
def _blocked() -> Iterator[None]:
    """A process started within has the ending signals blocked: none kills it before it can ignore them."""
    if sys.platform == "win32":  # which has no such signals
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def kill_all(children: Sequence[Child], close_links: bool = True) -> None:
    """Kill them together, and wait until they are gone and what they held is free.

    close_links: False where another thread reads the links: it sees their end, and closes them itself.
    One that the kernel does not let go of in REAP_S is left to it, and logged.
    """
    for child in children:
        child._process.kill()
        hang_up(child.link)
    for child in children:
        try:
            child._process.wait(REAP_S)
        except subprocess.TimeoutExpired:
            log.error("process %d was killed, and is still there after %g s", child.pid, REAP_S)
        if close_links:
            child.link.close()


def module_folders(path: Sequence[str]) -> list[str]:
    """Where a child looks for modules, from where this process does: the standard library comes first.

    The current folder is left out unless the package lies there, so that no file that a user happens to
    have in it, like queue.py, stands in for a module.
    """
    standard = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    standard |= {os.path.join(folder, "lib-dynload") for folder in standard}
    here = _current_folder()
    kept = [folder for folder in path if folder and (folder != here or folder == str(ROOT))]
    if str(ROOT) not in kept:
        kept.insert(0, str(ROOT))
    return sorted(kept, key=lambda folder: folder not in standard)


def _current_folder() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:  # it has been removed meanwhile
        return ""


def hang_up(link: Connection) -> None:
    """End both directions: whoever waits to read or to write wakes up; the link stays open."""
    with suppress(OSError), socket.socket(fileno=os.dup(link.fileno())) as line:  # the other side may be gone
        line.shutdown(socket.SHUT_RDWR)
