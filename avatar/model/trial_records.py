"""Which fast paths have worked on a device, kept on disk, so that the next process need not try them again.

Only successes are kept: what is missing may be installed tomorrow. A record holds for one device with one
driver, PyTorch, Triton, C compiler and state of our own code; with any other, everything is tried again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import platform
import shutil
import sysconfig
import threading
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import torch

from avatar.hardware.nvml import open_driver
from avatar.media import atomic

log = logging.getLogger(__name__)

FOLDER = "device-trials"  # below the folder of quantised weights
CODE = Path(__file__).parent  # trials and what they try
COMPILERS = ("cc", "gcc", "clang")
LIBRARIES = ("torch", "triton")

Trial = Callable[[torch.device], None]


class TrialRecords:
    """The records below a folder, one file for each kind of device and software."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / FOLDER
        self._turn = threading.Lock()

    def has(self, code: str, trial: Trial, device: torch.device) -> bool:
        """Whether a fast path's trial has worked on such a device."""
        return name_of(code, trial) in self._read(device)

    def add(self, code: str, trial: Trial, device: torch.device) -> None:
        """Keep that a trial worked; in a folder that cannot be written nothing is kept, which is logged."""
        with self._turn:
            known = {*self._read(device), name_of(code, trial)}
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                with atomic.whole(self._file(device)) as draft:
                    draft.write_text(json.dumps(sorted(known)), encoding="utf-8")
            except OSError as error:
                log.info("trials of this device are not recorded: %s", error.strerror)

    def _read(self, device: torch.device) -> list[str]:
        """Names of trials; none where there is no such file, or one that was damaged."""
        try:
            names = json.loads(self._file(device).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return []
        return names if isinstance(names, list) else []

    def _file(self, device: torch.device) -> Path:
        facts = json.dumps([device_facts(device), software_facts()])
        return self._folder / f"{hashlib.sha256(facts.encode()).hexdigest()[:16]}.json"


def name_of(code: str, trial: Trial) -> str:
    """A trial's name: a fast path may have several trials, and a trial arguments."""
    if isinstance(trial, functools.partial):
        return " ".join(map(str, (code, trial.func.__name__, *trial.args)))
    return f"{code} {trial.__name__}"


@functools.cache
def device_facts(device: torch.device) -> list[str]:
    """A device's kind and its driver."""
    if device.type != "cuda":
        return [device.type, platform.machine()]
    driver = open_driver()
    driver.close()
    card = torch.cuda.get_device_properties(device)
    return [device.type, card.name, f"{card.major}.{card.minor}", str(card.total_memory), str(driver.version)]


@functools.cache
def software_facts() -> list[str]:
    """Versions of all that a trial depends on, and a digest of our own code."""
    facts = [platform.python_version(), str(torch.version.cuda), str(torch.backends.cudnn.version())]
    for library in LIBRARIES:
        try:
            facts.append(metadata.version(library))
        except metadata.PackageNotFoundError:
            facts.append("")
    compilers = [os.environ.get("CC", ""), *map(shutil.which, COMPILERS)]
    header = Path(sysconfig.get_path("include")) / "Python.h"
    facts += [_state_of(Path(path)) if path else "" for path in (*compilers, str(header))]
    sources = hashlib.sha256()
    for path in sorted(CODE.rglob("*.py")):
        sources.update(path.read_bytes())
    return [*facts, sources.hexdigest()]


def _state_of(path: Path) -> str:
    """A file's path, size and time; only the path where there is no such file."""
    try:
        stat = path.stat()
    except OSError:
        return str(path)
    return f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
