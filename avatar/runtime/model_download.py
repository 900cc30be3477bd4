"""Run the `download` command in a subprocess for the page: start, pause, resume and progress."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from avatar.paths import is_file
from avatar.runtime.child_process import module_folders

log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-P", "-m", "avatar", "download", "--json")
RATE_OVER_S = 15.0
END_S = 5.0  # time for a process to end after it was asked to

State = Literal["idle", "running", "paused", "done", "failed"]


def fetch_command(weights: Path | None) -> list[str]:
    """The command that downloads what is missing of the model.

    weights: the folder for it, or a file in that folder, as named by the user; None: the hub's cache.
    """
    if weights is None:
        return [*COMMAND]
    folder = weights.parent if is_file(weights) else weights
    return [*COMMAND, "--ckpt_dir", str(folder), "--only_missing"]


@dataclass(frozen=True)
class FetchReading:
    """A download's progress. rate: bytes per second, None while unknown. error: text for the user."""

    state: State = "idle"
    done_bytes: int = 0
    total_bytes: int = 0
    rate: float | None = None
    error: str = ""

    @property
    def remaining_s(self) -> float | None:
        """Seconds left at this rate; None while it is unknown."""
        return (self.total_bytes - self.done_bytes) / self.rate if self.rate else None


class ModelFetch:
    """One download at a time. Pausing ends the process; the next one resumes where it stopped."""

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        self._command = list(command)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._reading = FetchReading()
        self._seen: deque[tuple[float, int]] = deque()

    def reading(self) -> FetchReading:
        """The current progress."""
        with self._lock:
            return self._reading

    def start(self) -> None:
        """Start or resume; does nothing if it is running or done."""
        with self._lock:
            if self._process is not None or self._reading.state == "done":
                return
            self._seen.clear()
            self._reading = FetchReading("running", self._reading.done_bytes, self._reading.total_bytes)
            self._process = process = subprocess.Popen(
                self._command,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(module_folders(sys.path))},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        threading.Thread(target=self._follow, args=(process,), name="model fetch", daemon=True).start()

    def pause(self) -> None:
        """Stop the process, and keep what has been downloaded."""
        with self._lock:
            process, self._process = self._process, None
            if process is None:
                return
            reading = self._reading
            self._reading = FetchReading("paused", reading.done_bytes, reading.total_bytes)
        process.terminate()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    close = pause

    def _follow(self, process: subprocess.Popen[str]) -> None:
        """Read the process's progress output until it ends."""
        assert process.stdout is not None
        assert process.stderr is not None
        said = ""
        logged = threading.Thread(target=_log, args=(process.stderr,), daemon=True)
        logged.start()
        for line in process.stdout:
            message = json.loads(line)
            if message["event"] == "progress":
                self._count(process, message["done_bytes"], message["total_bytes"])
            elif message["event"] == "error":
                said = " ".join(part for part in (message["message"], message["remedy"]) if part)
        code = process.wait()
        logged.join()
        with self._lock:
            if self._process is not process:
                return  # it was paused
            self._process, reading = None, self._reading
            if code == 0:
                self._reading = FetchReading("done", reading.total_bytes, reading.total_bytes)
            else:
                self._reading = FetchReading("failed", reading.done_bytes, reading.total_bytes, error=said)
                log.warning("the model was not fetched: %s", said or f"exit code {code}")

    def _count(self, process: subprocess.Popen[str], done: int, total: int) -> None:
        now = time.monotonic()
        with self._lock:
            if self._process is not process:
                return
            self._seen.append((now, done))
            while now - self._seen[0][0] > RATE_OVER_S:
                self._seen.popleft()
            since, before = self._seen[0]
            rate = (done - before) / (now - since) if now > since and done > before else self._reading.rate
            self._reading = FetchReading("running", done, total, rate)


def _log(stream: IO[str]) -> None:
    for line in stream:
        log.info("download: %s", line.rstrip())
