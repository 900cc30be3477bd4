"""A subprocess running one of our modules, with a link to it.

Not multiprocessing.Process, whose spawn would import the parent's main module and with it the whole page.
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
ROOT = Path(__file__).resolve().parents[2]  # the folder of the package


class Child:
    """`python -m MODULE … FD`, started immediately; link is this end of a socket pair, FD the other."""

    def __init__(self, module: str, *arguments: str, env: Mapping[str, str] | None = None) -> None:
        """env: added to this process's environment. Raises: OSError when no process can be started."""
        ours, theirs = socket.socketpair()
        with ours, theirs, _blocked():
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, *arguments, str(theirs.fileno())],
                **options_to_pass(theirs),
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a terminal's signals go to the parent, which cancels and drains
                env={
                    **os.environ,
                    **gpu_environment(),
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
        """How it ended, as the end of a sentence; waits up to patience_s for a process that has hung up."""
        try:
            code = self._process.wait(timeout=patience_s)
        except subprocess.TimeoutExpired:
            return "closed its connection"
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"

    def kill(self) -> None:
        """Kill it immediately; see kill_all."""
        kill_all([self])


def gpu_environment() -> dict[str, str]:
    """Environment variables of every process that may use a GPU, whichever way it is started.

    CUDA counts cards as NVML does, not the fastest first. Triton's folder of compiled kernels is stated:
    PyTorch would change it when it first builds code, and a later process, which finds that code in a cache,
    would look for our own kernels elsewhere and build them again.
    """
    home = os.environ.get("TRITON_HOME") or os.path.expanduser("~")
    kernels = os.environ.get("TRITON_CACHE_DIR") or os.path.join(home, ".triton", "cache")
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "TRITON_CACHE_DIR": kernels}


def options_to_pass(end: socket.socket) -> dict[str, Any]:
    """Options of subprocess.Popen that keep a socket open in the child, under the same number."""
    if sys.platform != "win32":
        return {"pass_fds": [end.fileno()]}
    end.set_inheritable(True)
    return {"startupinfo": subprocess.STARTUPINFO(lpAttributeList={"handle_list": [end.fileno()]})}


def ignore_ending_signals() -> None:
    """Ignore terminating signals, which the parent handles; a child ends when its link is closed.

    A child calls this first; until then those signals are blocked.
    """
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


@contextmanager
def _blocked() -> Iterator[None]:
    """Processes started inside have terminating signals blocked: none kills them before they ignore them."""
    if sys.platform == "win32":  # no such signals there
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def kill_all(children: Sequence[Child], close_links: bool = True) -> None:
    """Kill children together, and wait until they are gone and their resources are free.

    close_links: False when another thread reads the links: it sees their end, and closes them itself.
    A child that the kernel does not release within REAP_S is logged and abandoned.
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
    """A child's module search path, derived from this process's: the standard library comes first.

    The current folder is left out unless it contains the package, so that a user's file there, such as
    queue.py, does not shadow a module.
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
    except FileNotFoundError:  # it has been removed
        return ""


def hang_up(link: Connection) -> None:
    """Shut down both directions: threads blocked in reads or writes wake up; the link stays open."""
    with suppress(OSError), socket.socket(fileno=os.dup(link.fileno())) as line:  # the other side may be gone
        line.shutdown(socket.SHUT_RDWR)
