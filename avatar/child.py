"""A process of our own with a link to it; what is sent over the link, both sides agree on.

Not multiprocessing.Process: its spawn would import the parent's main module, and with it the whole page.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

log = logging.getLogger(__name__)

REAP_S = 10.0  # a killed process should be gone by then


def handing_over(end: socket.socket) -> dict[str, Any]:
    """How subprocess.Popen leaves a socket open in the child, under the number that it has here."""
    if sys.platform != "win32":
        return {"pass_fds": [end.fileno()]}
    end.set_inheritable(True)
    return {"startupinfo": subprocess.STARTUPINFO(lpAttributeList={"handle_list": [end.fileno()]})}


class Child:
    """`python -m MODULE … FD`, started at once; link is this end of a socket pair, FD the other."""

    def __init__(self, module: str, *arguments: str, env: Mapping[str, str] | None = None) -> None:
        """env: laid over this process's own environment."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments, str(theirs.fileno())],
                **handing_over(theirs),
                stdin=subprocess.DEVNULL,
                env={
                    **os.environ,
                    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # CUDA counts as NVML does, not the fastest card first
                    **(env or {}),
                    "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
                },
            )
        self.link = Connection(ours.detach())

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


def kill_all(children: Sequence[Child]) -> None:
    """Hang up, kill them together, and wait until they are gone and what they held is free.

    One that the kernel does not let go of in REAP_S is left to it, and logged.
    """
    for child in children:
        child.link.close()
        child._process.kill()
    for child in children:
        try:
            child._process.wait(REAP_S)
        except subprocess.TimeoutExpired:
            log.error("process %d was killed, and is still there after %g s", child.pid, REAP_S)
